"""What else a Python shop could take, each as a small faithful program; see cases.py for how they are run."""
