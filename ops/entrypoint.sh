#!/bin/sh
# Numba uses a cache only where it may write, and this file system is read-only: the kernels that the image was built with are
# copied to a folder of the container's own. On another kind of processor than the builder's they are compiled there anew.
set -eu
if [ ! -e "$NUMBA_CACHE_DIR" ]; then
  cp -r /opt/thousandfold/kernels "$NUMBA_CACHE_DIR"
fi
exec "$@"
