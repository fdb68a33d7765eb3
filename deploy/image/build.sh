#!/usr/bin/env bash
# Packs a root filesystem that rootfs.sh has made into an image: an OCI archive. Needs Debian's buildah; neither root, nor
# a daemon, nor a registry.
set -euo pipefail

usage() {
    cat <<USAGE
usage: deploy/image/build.sh [OPTION]...

  --arch ARCH     amd64 or arm64 (default: this machine's)
  --rootfs DIR    default: target/image/ARCH/rootfs
  --out FILE      the archive to write (default: target/image/ARCH/cairn.oci.tar)

SOURCE_DATE_EPOCH is the time of all files, and of the image (default: 0).
USAGE
}

fail() {
    printf 'build.sh: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf '  %s\n' "$2" >&2
    exit 1
}

case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch='' ;;
esac
rootfs='' out=''
given=("$@")
while (($#)); do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --arch | --rootfs | --out)
            (($# > 1)) && [[ -n $2 ]] || fail "$1 needs a value" 'see --help'
            case $1 in
                --arch) arch=$2 ;;
                --rootfs) rootfs=$(realpath -m -- "$2") ;;
                --out) out=$(realpath -m -- "$2") ;;
            esac
            shift 2
            ;;
        *) fail "unknown argument $1" 'see --help' ;;
    esac
done
[[ $arch == amd64 || $arch == arm64 ]] || fail "no image for architecture '$arch'" '--arch amd64 or --arch arm64'
command -v buildah >/dev/null || fail 'buildah is missing' 'on Debian: apt-get install buildah; or use the Containerfile'

# All files are root's, so one id is enough, and a namespace of our own gives it to anybody.
if [[ $(id -u) != 0 ]]; then
    exec unshare --user --map-root-user --mount "$BASH" "$0" "${given[@]}"
fi

cd "$(dirname "$0")/../.."
rootfs=${rootfs:-$PWD/target/image/$arch/rootfs}
out=${out:-$PWD/target/image/$arch/cairn.oci.tar}
[[ -x $rootfs/usr/local/bin/cairn ]] || fail "no root filesystem at $rootfs" 'make it first: deploy/image/rootfs.sh'
epoch=${SOURCE_DATE_EPOCH:-0}
version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD 2>/dev/null || true)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Storage of our own: the machine's stays as it is, and its driver does not matter. Nothing is fetched, so there is no
# signature to check.
export HOME=$scratch CONTAINERS_STORAGE_CONF=$scratch/storage.conf BUILDAH_ISOLATION=chroot
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$scratch" "$scratch" >"$scratch/storage.conf"
mkdir -p "$scratch/.config/containers"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$scratch/.config/containers/policy.json"

tar --create --file "$scratch/rootfs.tar" --directory "$rootfs" --format gnu --sort name --mtime "@$epoch" \
    --owner 0 --group 0 --numeric-owner .
container=$(buildah from --arch "$arch" scratch)
buildah add --quiet "$container" "$scratch/rootfs.tar" / >/dev/null
labels=(
    "org.opencontainers.image.title=cairn"
    "org.opencontainers.image.description=Waypoint proxy for Istio's ambient mesh"
    "org.opencontainers.image.licenses=Apache-2.0"
    "org.opencontainers.image.version=$version"
)
[[ -z $revision ]] || labels+=("org.opencontainers.image.revision=$revision")
settings=(--arch "$arch" --os linux --user 1337:1337 --entrypoint '["/usr/local/bin/cairn"]' --cmd '' --workingdir / --env PATH=/usr/local/bin)
for label in "${labels[@]}"; do settings+=(--label "$label"); done
# HBONE, metrics, probes, istiod's name for metrics.
for port in 15008 15020 15021 15090; do settings+=(--port "$port/tcp"); done
buildah config "${settings[@]}" "$container"
mkdir -p "$(dirname "$out")"
rm -f "$out"
buildah commit --quiet --disable-compression=false --format oci --timestamp "$epoch" "$container" "oci-archive:$out:cairn:$version" >/dev/null
printf '%s: %d bytes (%s, version %s)\n' "$out" "$(stat -c %s "$out")" "$arch" "$version"
