"""Rankloop's sync with Label Studio against the bare SDK: `python benchmarks/labeling.py --help`.

The benchmark itself is labeling_sync.py. A script's folder comes first on its path, so here
`import labeling` finds this file and not our package, in every benchmark: it stands aside.
"""

import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    from labeling_sync import main

    main()
else:
    package = Path(__file__).resolve().parent.parent / "labeling"
    spec = importlib.util.spec_from_file_location(
        __name__, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
