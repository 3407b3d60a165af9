"""The embedded world: procedural objects with ground truth, a small prior and a reward, trained here."""
