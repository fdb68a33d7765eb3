#!/usr/bin/env bash
# cargo, for a binary that needs nothing of the machine it runs on: linked statically, without paths of the machine it
# was built on. `deploy/image/cargo.sh run --release -- demo` is `cargo run --release -- demo` otherwise.
#
# CARGO_BUILD_TARGET is honoured; x86_64-unknown-linux-gnu and aarch64-unknown-linux-gnu are known.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_BUILD_TARGET:-$(uname -m)-unknown-linux-gnu}
export CARGO_BUILD_TARGET=$target

# As CARGO_ENCODED_RUSTFLAGS, because a path may have spaces.
flags=(-C target-feature=+crt-static
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    "--remap-path-prefix=$root=/cairn")
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && printf '%s' "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS

if [[ $target == aarch64-* ]]; then
    # Pages are of 4, 16 or 64 KiB there; an allocator built for large ones runs on all of them.
    export JEMALLOC_SYS_WITH_LG_PAGE=16
fi
if [[ $target != $(uname -m)-* ]]; then
    linker=CARGO_TARGET_$(printf '%s' "$target" | tr 'a-z-' 'A-Z_')_LINKER
    declare -gx "$linker=${!linker:-${target%%-*}-linux-gnu-gcc}"
fi
exec cargo "$@"
