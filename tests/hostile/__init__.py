"""Inputs from people who mean harm or do not care, drawn by seed. None may crash, hang, or raise what is no error of
ours.

An attack is a module with `Attack`: built once in a worker process with an empty folder, it gives the `Try` of a seed.
"""
