#!/usr/bin/env bash
# What the binary is made of, and under which licences. Needs cargo and nothing else.
set -euo pipefail

usage() {
    cat <<USAGE
usage: deploy/image/licenses.sh list  [--target TRIPLE]   NAME VERSION|LICENCE|REPOSITORY, a line each
       deploy/image/licenses.sh check [--target TRIPLE]   fails when a licence is not in allowed-licenses
       deploy/image/licenses.sh check -                   the same for such lines on standard input
       deploy/image/licenses.sh text  [--target TRIPLE]   the list with the texts of the licences
USAGE
}

fail() {
    printf 'licenses.sh: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf '  %s\n' "$2" >&2
    exit 1
}

command=${1:-}
shift || true
target=$(uname -m)-unknown-linux-gnu input=''
while (($#)); do
    case $1 in
        --target) target=${2:?"--target needs a triple"} && shift 2 ;;
        -) input=stdin && shift ;;
        *) fail "unknown argument $1" 'see --help' ;;
    esac
done
cd "$(dirname "$0")/../.."
here=deploy/image
export LC_ALL=C

# All that is below the binary's crate in the tree of what a build here has: with the features that the build gives.
list() {
    cargo tree --locked --quiet --edges normal --target "$target" --no-dedupe --prefix depth --format '|{p}|{l}|{r}' |
        awk -F '|' '
            $1 == 0 { inside = $2 ~ /^cairn v/ }
            # Crates of this repository have a path behind the version.
            inside && NF >= 4 && $2 !~ /\(\// { sub(/ v/, " ", $2); sub(/ \(.*/, "", $2); print $2 "|" $3 "|" $4 }
        ' | sort -u
}

# Prints what is not allowed. An expression is read as SPDX says: AND binds tighter than OR; "/" is an old OR.
refused() {
    awk -F '|' '
        function either(   ok) {
            ok = both()
            while (word[at] == "OR") { at++; ok = both() || ok }
            return ok
        }
        function both(   ok) {
            ok = one()
            while (word[at] == "AND") { at++; ok = one() && ok }
            return ok
        }
        function one(   ok) {
            if (word[at] == "(") { at++; ok = either(); if (word[at] != ")") return 0; at++; return ok }
            ok = word[at++] in allowed
            # A licence with an exception is another licence.
            if (word[at] == "WITH") { at += 2; return 0 }
            return ok
        }
        FNR == NR { if ($0 !~ /^(#|$)/) allowed[$0]; next }
        {
            text = $2
            gsub(/\//, " OR ", text); gsub(/[()]/, " & ", text)
            split("", word)
            count = split(text, word, " ")
            at = 1
            if (!(either() && at == count + 1)) print $1 ": " ($2 == "" ? "no licence is named" : $2)
        }
    ' $here/allowed-licenses -
}

check() {
    local lines bad
    if [[ $input == stdin ]]; then lines=$(cat); else lines=$(list); fi
    [[ -n $lines ]] || fail 'the list of crates is empty'
    bad=$(refused <<<"$lines")
    [[ -z $bad ]] || fail "licences that are not in $here/allowed-licenses:"$'\n'"$bad" \
        'leave the crate out, or add the licence after reading it'
    printf '%d crates, all under allowed licences\n' "$(wc -l <<<"$lines")"
}

# Directory of each package: cargo's own answer, by the name of the directory, which is NAME-VERSION.
directories() {
    cargo metadata --locked --quiet --format-version 1 --filter-platform "$target" |
        grep -o '"manifest_path":"[^"]*/Cargo.toml"' | sed 's/^"manifest_path":"//; s|/Cargo.toml"$||'
}

glibc_version() {
    printf '#include <features.h>\n' | "${CC:-cc}" -E -dM -x c - |
        awk '$2 == "__GLIBC__" { major = $3 } $2 == "__GLIBC_MINOR__" { minor = $3 } END { print major "." minor }'
}

# title TEXT
title() { printf '\n%s\n%s\n\n' "$1" "$(tr -c '\n' '=' <<<"$1")"; }

text() {
    local lines name version directory file sum found by
    lines=$(list)
    [[ -n $lines ]] || fail 'the list of crates is empty'
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    directories >"$scratch/directories"
    mkdir "$scratch/texts" "$scratch/users"
    : >"$scratch/without"
    while IFS='|' read -r name _; do
        version=${name#* } name=${name% *}
        directory=$(awk -v a="/$name-$version" -v b="/$name" \
            'substr($0, length($0) - length(a) + 1) == a { print; exit } substr($0, length($0) - length(b) + 1) == b { print; exit }' \
            "$scratch/directories")
        [[ -d $directory ]] || fail "the source of $name $version is not there" 'cargo fetch --locked'
        found=''
        # The second level has what a crate brings along that was written by others.
        while read -r file; do
            found=yes
            # Texts that differ in nothing but line ends and blanks are one.
            sum=$(tr -s '[:space:]' ' ' <"$file" | cksum | tr ' ' -)
            [[ -f $scratch/texts/$sum ]] || tr -d '\r' <"$file" >"$scratch/texts/$sum"
            printf '%s %s: %s\n' "$name" "$version" "${file#"$directory"/}" >>"$scratch/users/$sum"
        done < <(find "$directory" -maxdepth 2 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \
            -o -iname 'copyright*' -o -iname 'unlicense*' \) ! -name '*.rs' ! -name '*.toml' | sort)
        if [[ -z $found ]]; then
            by=$(authors "$directory")
            printf '%s %s, by %s\n' "$name" "$version" "${by:-its authors}" >>"$scratch/without"
        fi
    done <<<"$lines"

    cat <<HEAD
Cairn is licensed under the Apache License 2.0 (LICENSE beside this file). Its executable also contains what is listed
here. Each line: crate and version, licence, where its source is.

HEAD
    awk -F '|' '{ printf "%s | %s | %s\n", $1, $2, $3 }' <<<"$lines"
    title 'The Rust standard library'
    cat <<'RUST'
MIT OR Apache-2.0, https://github.com/rust-lang/rust
RUST
    title 'The GNU C Library, linked statically'
    cat <<GLIBC
glibc $(glibc_version), GNU Lesser General Public License 2.1 or later, https://sourceware.org/glibc; its text is the last in
this file. You may change that library and link Cairn with it again: Cairn's complete source, and the scripts that
link it (deploy/image), come with it under the Apache License 2.0. Startup files and libgcc, of the compiler: GNU
General Public License 3 with the GCC Runtime Library Exception, which lets them be in any executable.
GLIBC
    title 'CA certificates (/etc/ssl/certs)'
    cat <<'ROOTS'
Unless the image was made with others: Mozilla's list, Mozilla Public License 2.0,
https://wiki.mozilla.org/CA/Included_Certificates
ROOTS
    if [[ -s $scratch/without ]]; then
        title 'Crates without a text of their own'
        printf 'Each is under the licence in the list; the texts of these licences are below.\n\n'
        cat "$scratch/without"
    fi
    # In the order of the first crate that has it.
    for file in $(cd "$scratch/users" && for sum in *; do printf '%s|%s\n' "$(head -n 1 "$sum")" "$sum"; done | sort | sed 's/.*|//'); do
        title "Text of:"
        cat "$scratch/users/$file"
        echo
        cat "$scratch/texts/$file"
    done
    title 'GNU Lesser General Public License 2.1'
    cat $here/LGPL-2.1
}

# authors DIRECTORY: of its manifest, in one line.
authors() {
    awk '/^authors = \[/ { inside = 1 } inside { print } inside && /\]/ { exit }' "$1/Cargo.toml" |
        tr -d '\n' | sed 's/^authors = \[ *//; s/,* *\]$//; s/"//g; s/  */ /g; s/ <[^>]*>//g'
}

case $command in
    list) list ;;
    check) check ;;
    text) text ;;
    --help | -h) usage ;;
    *) usage >&2 && exit 2 ;;
esac
