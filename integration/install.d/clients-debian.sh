#!/bin/sh
# Debian's PHP with curl and Guzzle, and two readers of shell. Idempotent; what
# is already there is left alone.
set -eu
packages=
command -v php >/dev/null && php -m | grep -qx curl || packages="php-cli php-curl"
[ -f /usr/share/php/GuzzleHttp/autoload.php ] || packages="$packages php-guzzlehttp-guzzle"
command -v shellcheck >/dev/null || packages="$packages shellcheck"
command -v dash >/dev/null || packages="$packages dash"
command -v curl >/dev/null || packages="$packages curl"
[ -n "$packages" ] || exit 0
apt-get update -qq
# shellcheck disable=SC2086 # words are meant
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
