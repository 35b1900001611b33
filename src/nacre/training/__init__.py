"""How it is learnt."""
