#!/bin/sh
# Debian's OpenSSL and GnuPG, which open what was signed and encrypted.
# Idempotent; what is already there is left alone.
set -eu
packages=
[ -x /usr/bin/openssl ] || packages="openssl"
{ [ -x /usr/bin/gpg ] && [ -x /usr/bin/gpg-agent ]; } || packages="$packages gpg gpg-agent"
[ -n "$packages" ] || exit 0
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
