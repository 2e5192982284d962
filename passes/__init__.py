"""Rewrites of a program, one file a pass, and the pipeline that checks what each promised."""
