"""NVIDIA's stack as data and a plan: which driver, CUDA and container toolkit fit which card, kernel and distribution.

Nothing here connects to anything or imports Pulumi: a preview refuses with it what can't work, and `up` carries out its
plan.
"""
