#!/usr/bin/env bash
# Makes the root filesystem of Cairn's image, without any container tool. README.md beside this file says what is in it.
set -euo pipefail

usage() {
    cat <<USAGE
usage: deploy/image/rootfs.sh [OPTION]...

  --profile NAME           cargo profile: dist (what is shipped), release (default: dist)
  --target TRIPLE          x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu (default: this machine's)
  --binary FILE            this static cairn instead of building one
  --ca-certificates PATH   PEM file, or directory of *.crt, of trusted roots
                           (default: /usr/share/ca-certificates/mozilla, which has none of this machine's own)
  --out DIR                where to make it, replacing what is there (default: target/image/ARCH/rootfs)
  --tar FILE               also pack it, the same bytes each time

ARCH is amd64 or arm64. SOURCE_DATE_EPOCH is the time of all files (default: 0).
USAGE
}

fail() {
    printf 'rootfs.sh: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf '  %s\n' "$2" >&2
    exit 1
}

# What a node has to fetch before the first request (gzip, as registries hold it), and what that becomes on its disk. A
# larger one is a mistake, or needs a decision.
readonly MAX_PACKED_BYTES=$((20 * 1024 * 1024)) MAX_BYTES=$((40 * 1024 * 1024))
# uid and gid: istiod's template says `runAsUser: 1337`.
readonly ID=1337
# Where istiod's template and deploy's manifests mount something. A runtime makes these itself unless the image is
# mounted read-only from the start.
readonly MOUNT_POINTS=(
    dev proc sys
    etc/cairn etc/istio/pod etc/istio/proxy
    var/lib/istio/data
    var/run/secrets/istio var/run/secrets/tokens var/run/secrets/workload-spiffe-uds
    var/run/secrets/kubernetes.io/serviceaccount
)

profile=dist target=$(uname -m)-unknown-linux-gnu binary='' out='' tar='' roots=/usr/share/ca-certificates/mozilla
while (($#)); do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --profile | --target | --binary | --ca-certificates | --out | --tar)
            (($# > 1)) && [[ -n $2 ]] || fail "$1 needs a value" 'see --help'
            case $1 in
                --profile) profile=$2 ;;
                --target) target=$2 ;;
                --binary) binary=$(realpath -- "$2") ;;
                --ca-certificates) roots=$(realpath -m -- "$2") ;;
                --out) out=$(realpath -m -- "$2") ;;
                --tar) tar=$(realpath -m -- "$2") ;;
            esac
            shift 2
            ;;
        *) fail "unknown argument $1" 'see --help' ;;
    esac
done

cd "$(dirname "$0")/../.."
here=deploy/image
case $target in
    x86_64-unknown-linux-gnu) arch=amd64 machine=x86_64 package=gcc-x86-64-linux-gnu ;;
    aarch64-unknown-linux-gnu) arch=arm64 machine=aarch64 package=gcc-aarch64-linux-gnu ;;
    *) fail "no image for target $target" 'x86_64-unknown-linux-gnu and aarch64-unknown-linux-gnu are known' ;;
esac
# Prefix of the compiler and its tools.
tools=''
[[ $machine == "$(uname -m)" ]] || tools=$machine-linux-gnu-
out=${out:-$PWD/target/image/$arch/rootfs}
epoch=${SOURCE_DATE_EPOCH:-0}
umask 022

# need PROGRAM PACKAGE
need() { command -v "$1" >/dev/null || fail "$1 is missing" "on Debian: apt-get install $2"; }

build() {
    need cargo cargo
    need "${tools}gcc" "$package"
    local libraries libc
    libraries=$(rustc --print target-libdir --target "$target")
    [[ -n $(find "$libraries" -name 'libstd-*.rlib' -print -quit 2>/dev/null) ]] ||
        fail "the Rust standard library for $target is missing" "rustup target add $target"
    libc=$("${tools}gcc" -print-file-name=libc.a)
    [[ -f $libc ]] || fail "glibc's static library for $target is missing" 'on Debian: apt-get install libc6-dev, or its -cross package'
    # No --package: so it has the features that it has in `cargo run`.
    CARGO_BUILD_TARGET=$target $here/cargo.sh build --locked --profile "$profile" --bin cairn
    binary=${CARGO_TARGET_DIR:-target}/$target/$profile/cairn
}

# Fails unless the file is an executable for the target that needs no loader and no library.
must_be_static() {
    [[ -f $binary ]] || fail "$binary is not there" "leave --binary out to build it"
    need "${tools}readelf" "binutils"
    local header
    header=$("${tools}readelf" --file-header --program-headers --dynamic "$binary" 2>/dev/null) ||
        fail "$binary is no ELF executable"
    case $machine in
        x86_64) [[ $header == *'Advanced Micro Devices X86-64'* ]] || fail "$binary is not for $target" ;;
        aarch64) [[ $header == *'AArch64'* ]] || fail "$binary is not for $target" ;;
    esac
    if [[ $header == *INTERP* || $header == *'(NEEDED)'* ]]; then
        fail "$binary is not linked statically" "build it with $here/cargo.sh"
    fi
}

put_binary() {
    need "${tools}objcopy" "binutils"
    install -D -m 755 "$binary" "$work/usr/local/bin/cairn"
    # What makes addresses in a backtrace readable stays here.
    "${tools}objcopy" --only-keep-debug "$binary" "$out.part.debug"
    "${tools}objcopy" --strip-all "$work/usr/local/bin/cairn"
    ln -s cairn "$work/usr/local/bin/pilot-agent"
}

put_roots() {
    local bundle=$work/etc/ssl/certs/ca-certificates.crt
    mkdir -p "${bundle%/*}"
    if [[ -d $roots ]]; then
        # Sorted by name in every locale.
        (LC_ALL=C && shopt -s nullglob && for file in "$roots"/*.crt; do cat "$file" && echo; done) | sed '/^$/d' >"$bundle"
    elif [[ -f $roots ]]; then
        cat "$roots" >"$bundle"
    else
        fail "no CA certificates at $roots" "on Debian: apt-get install ca-certificates; else --ca-certificates PATH"
    fi
    grep -q -- '-----BEGIN CERTIFICATE-----' "$bundle" || fail "$roots has no PEM certificate"
}

put_names() {
    printf 'root:x:0:0:root:/:/sbin/nologin\ncairn:x:%d:%d:Cairn:/:/sbin/nologin\n' $ID $ID >"$work/etc/passwd"
    printf 'root:x:0:\ncairn:x:%d:\n' $ID >"$work/etc/group"
    # These two are built into a static glibc; any other would have to be loaded.
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$work/etc/nsswitch.conf"
}

# Modes and times that do not depend on who makes it and when. Owners are root in the image.
settle() {
    find "$work" -type d -exec chmod 755 {} +
    find "$work" -type f ! -path "$work/usr/local/bin/*" -exec chmod 644 {} +
    chmod 1777 "$work/tmp"
    find "$work" -exec touch --no-dereference --date="@$epoch" {} +
}

# archive DIR: the same bytes for the same files.
archive() {
    tar --create --directory "$1" --format gnu --sort name --mtime "@$epoch" --owner 0 --group 0 --numeric-owner .
}

# must_fit WHAT BYTES LIMIT
must_fit() {
    (($2 <= $3)) || fail "the root filesystem has $2 bytes $1, more than $3" \
        "see what grew: nm --size-sort --demangle ${CARGO_TARGET_DIR:-target}/$target/$profile/cairn"
}

[[ -n $binary ]] || build
must_be_static
work=$out.part
rm -rf "$work"
mkdir -p "$work/tmp" "${MOUNT_POINTS[@]/#/$work/}"
trap 'rm -rf "$work" "$work.debug"' EXIT
put_binary
put_roots
put_names
mkdir -p "$work/licenses"
cp LICENSE "$work/licenses/LICENSE"
CC=${tools}gcc $here/licenses.sh text --target "$target" >"$work/licenses/THIRD-PARTY"
settle

bytes=$(find "$work" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
packed=$(archive "$work" | gzip --no-name | wc -c)
must_fit unpacked "$bytes" $MAX_BYTES
must_fit packed "$packed" $MAX_PACKED_BYTES
rm -rf "$out"
mv "$work" "$out"
mv "$work.debug" "${out%/*}/cairn.debug"
if [[ -n $tar ]]; then
    mkdir -p "${tar%/*}"
    archive "$out" >"$tar"
    printf '%s: %s\n' "$tar" "$(sha256sum "$tar" | cut -d ' ' -f 1)"
fi
printf '%s: %d bytes, packed %d; cairn is %d (%s)\n' "$out" "$bytes" "$packed" "$(stat -c %s "$out/usr/local/bin/cairn")" "$target"
