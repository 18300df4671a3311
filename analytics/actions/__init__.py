"""Carries out decisions on schedulers and webhooks, and logs what was done."""
