"""Real runs, killed, starved and misled, then resumed: nothing may be lost, paid twice or told to strangers."""
