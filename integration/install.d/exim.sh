#!/bin/sh
# Debian's Exim, the mail relay that takes the reports of a leak, and Python's
# library, which reads them. No service is started: the test runs its own, with
# a configuration of its own. Idempotent; what is already there is left alone.
set -eu
packages=
[ -x /usr/sbin/exim4 ] || packages="exim4-daemon-light"
/usr/bin/python3 -c 'import email.policy' 2>/dev/null || packages="$packages python3"
[ -n "$packages" ] || exit 0
apt-get update -qq
# Installing must not start a daemon on port 25.
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
