"""NVIDIA's stack as data and a plan: which driver, CUDA and container toolkit fit which card, kernel and distribution.

Pure, and without Pulumi: by it a preview refuses what can't work, and `up` carries out its plan.
"""
