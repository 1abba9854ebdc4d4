"""The paper's tables and figures: ``python scripts/reproduce.py images-table3 --budget cpu --data FOLDER``."""

from aire_nerfstudio.commands import reproduce

if __name__ == "__main__":
    reproduce()
