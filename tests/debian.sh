# shellcheck shell=bash
# Creates minimal Debian 12 systems in a folder, for scripts that run as root. To be sourced.
#
# They use this machine's access to package registries: proxies, certificates, settings of cargo and apt.

# The path of the certificates in these systems.
readonly DEBIAN_CERTIFICATES=/etc/ssl/host.crt

# minimal_debian ROOT [PACKAGE…]: creates a system.
minimal_debian() {
    local root=$1 mirror='' packages
    shift
    command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install -y debootstrap debian-archive-keyring" >&2; return 2; }
    if grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; then
        # A missing file is not a failure.
        mirror=$(sed -nE '/^(URIs:|deb )/ { s/^[^:]*[: ] *(\[.*\] *)?(https?:[^ ]+).*/\2/p; q }' \
            /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
    fi
    packages=$(IFS=,; echo "$*")
    debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        ${packages:+"--include=$packages"} bookworm "$root" ${mirror:+"$mirror"}
    chmod 755 "$root"
    apt-config dump | grep '^Acquire::' >"$root/etc/apt/apt.conf.d/90host" || true
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    mkdir -p "$root/dev/shm" "$root/etc/ssl" "$root/opt/rust" "$root/root/.cargo"
    cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root$DEBIAN_CERTIFICATES"
    cp "${CARGO_HOME:-$HOME/.cargo}"/config.toml "$root/root/.cargo/" 2>/dev/null || true
    # As in Debian's container images, installing a service does not start it.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
}

# The environment that cargo and apt need in these systems, as NAME=VALUE lines.
debian_settings() {
    local name
    while IFS= read -r name; do
        printf '%s=%s\n' "$name" "${!name}"
    done < <(compgen -e | grep -iE '^(https?|all|no)_proxy$|^CARGO_(HTTP|NET|REGISTR|SOURCE|BUILD_JOBS)' || true)
    printf '%s=%s\n' SSL_CERT_FILE "$DEBIAN_CERTIFICATES" CARGO_HTTP_CAINFO "$DEBIAN_CERTIFICATES"
}
