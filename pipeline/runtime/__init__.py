"""How runs are recorded, followed and resumed, and which code they ran."""
