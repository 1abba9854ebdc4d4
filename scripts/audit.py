"""Licences of everything this package needs, and known vulnerabilities where the database can be reached.

``python scripts/audit.py``; exit status 1 for a licence that nobody looked at yet. Vulnerabilities are listed by
pip-audit (``pip install -e '.[audit]'``), which asks a server for them: without it, or without a network, a line says
that they were left out.
"""

import json
import re
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "aire-nerfstudio"
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|HPND|MIT-CMU|CC0|Unlicense|0BSD|Public Domain|BlueOak)",
    re.IGNORECASE,
)
WEAK = re.compile(r"\b(MPL|Mozilla|LGPL|Lesser)", re.IGNORECASE)
STRONG = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)
# Looked at by a person: not permissive, or without a word in its metadata.
NVIDIA = "NVIDIA's terms; comes with torch's CUDA wheels"
REVIEWED: dict[str, str] = {
    **dict.fromkeys(
        ("cuda-toolkit", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cusparselt-cu13", "nvidia-nccl-cu13"), NVIDIA
    ),
    "nvidia-nvshmem-cu13": NVIDIA,
    "embreex": "BSD 2-clause, whose text is what its metadata gives; trimesh's ray caster",
    "gsplat": "Apache-2.0 by its repository; nerfstudio needs it",
    "nerfacc": "MIT by its repository; nerfstudio needs it",
    "nuscenes-devkit": "nerfstudio needs it; the code is Apache-2.0 by its repository, the data set is not free",
    "plyfile": "GPL 3; nerfstudio needs it, this package does not import it",
    "pycocotools": "FreeBSD is BSD 2-clause; needed by nuscenes-devkit",
    "pymeshlab": "GPL 3; imported at run time (mesh repair, the demo's bunny): what ships both is under the GPL",
    **dict.fromkeys(("bidict", "certifi", "everett", "libigl"), "MPL 2, used unchanged"),
}


def closure(root):
    """Names of all installed distributions that ``root`` needs, without extras."""
    found, left = set(), [root]
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for text in requires:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return sorted(found - {root})


def licence_of(name):
    """What the distribution says of its licence, in few words."""
    about = metadata.metadata(name)
    said = [about.get("License-Expression") or ""]
    said += [c.split("::")[-1].strip() for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    if not any(said):
        said.append((about.get("License") or "").strip().splitlines()[0][:80] if about.get("License") else "")
    return "; ".join(dict.fromkeys(word for word in said if word and word != "OSI Approved"))


def kind_of(licence):
    """``permissive``, ``weak`` or ``strong`` copyleft, or ``unknown``."""
    if STRONG.search(licence) and not WEAK.search(licence) and not PERMISSIVE.search(licence):
        return "strong"
    if PERMISSIVE.search(licence):
        return "permissive"
    return "weak" if WEAK.search(licence) else "strong" if STRONG.search(licence) else "unknown"


def vulnerabilities(names):
    """Lines about known ones; a single line where they cannot be known here."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        why = "pip-audit is not installed" if _is_missing("pip_audit") else "the database cannot be reached"
        return [f"known vulnerabilities: left out, {why}"]
    lines = [
        f"{d['name']} {d['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no release'}"
        for d in found if canonicalize_name(d["name"]) in names for v in d.get("vulns", [])
    ]  # fmt: skip
    return [f"known vulnerabilities: {len(lines)}", *lines]


def _is_missing(module):
    from importlib.util import find_spec

    return find_spec(module) is None


def main():
    """Print; the exit status."""
    names = closure(ROOT)
    licences = {name: licence_of(name) for name in names}
    kinds = {name: kind_of(licence) for name, licence in licences.items()}
    counts = {kind: list(kinds.values()).count(kind) for kind in ("permissive", "weak", "strong", "unknown")}
    print(f"{len(names)} distributions: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    new = []
    for name in names:
        if kinds[name] == "permissive":
            continue
        note = REVIEWED.get(name)
        print(f"  {name} {metadata.version(name)}: {licences[name] or 'says nothing'} ({kinds[name]}): {note or 'NEW'}")
        if note is None and kinds[name] != "weak":
            new.append(name)
    print("\n".join(vulnerabilities(names)))
    if new:
        print(
            f"error: nobody looked at the licences of {', '.join(new)} yet; add them to REVIEWED here", file=sys.stderr
        )
    return 1 if new else 0


if __name__ == "__main__":
    raise SystemExit(main())
