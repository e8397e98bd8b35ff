#!/bin/sh
# Prints the path of a Python of version $1 ("3.12"): $PYTHON312, $PYTHON, python3.12 on the path or one of pyenv's.
set -eu
VERSION=$1
NAME=PYTHON$(echo "$VERSION" | tr -d .)
eval "GIVEN=\${$NAME:-}"
for candidate in "$GIVEN" "${PYTHON:-}" "python$VERSION" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$VERSION".*/bin/python; do
    # Run, not only found: pyenv puts commands on the path that do nothing but say which versions have them.
    if [ -n "$candidate" ] && "$candidate" - "$VERSION" 2>/dev/null <<'PY'; then
import sys, venv
if "%d.%d" % sys.version_info[:2] != sys.argv[1]:
    sys.exit(1)
print(sys.executable)
PY
        exit 0
    fi
done
echo "no Python $VERSION: looked at \$$NAME, \$PYTHON, python$VERSION on the path and pyenv's versions" >&2
exit 1
