"""How many hostile inputs there are, by family:  python -m tests.hostile.count"""

from tests.hostile.tables import FAMILIES

if __name__ == "__main__":
    counts = {name: len(make()) for name, make in FAMILIES.items()}
    for name, count in counts.items():
        print(f"{name:<16} {count:>5}")
    print(f"{'together':<16} {sum(counts.values()):>5}")
