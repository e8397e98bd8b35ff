"""Whole runs of training side by side: do their curves separate?"""
