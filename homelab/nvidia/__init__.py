"""NVIDIA's stack: which driver, CUDA and container toolkit fit which card, kernel and distribution, as data and a plan;
its resources, and what is done for them.
"""
