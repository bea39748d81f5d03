#!/bin/sh
# Every rule of the model broken, and its larger searches.
here=$(dirname -- "$0")
sh "$here/lint_model.sh" --broken || exit
exec sh "$here/lint_model.sh" --long
