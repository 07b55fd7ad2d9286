#!/bin/sh
# Debian's servers in which applications run. No service is started: the tests
# run their own, with configurations of their own. Idempotent; what is already
# there is left alone.
set -eu
packages=
[ -x /usr/sbin/php-fpm8.2 ] || packages="php8.2-fpm php8.2-curl"
[ -f /usr/lib/apache2/modules/libphp8.2.so ] || packages="$packages libapache2-mod-php8.2"
[ -x /usr/share/tomcat10/bin/catalina.sh ] && id tomcat >/dev/null 2>&1 || packages="$packages tomcat10"
[ -x /usr/sbin/nginx ] || packages="$packages nginx"
[ -x /usr/sbin/cron ] || packages="$packages cron"
[ -f /usr/share/php/GuzzleHttp/autoload.php ] || packages="$packages php-guzzlehttp-guzzle"
command -v cgi-fcgi >/dev/null || packages="$packages libfcgi-bin"
command -v javac >/dev/null || packages="$packages openjdk-17-jdk-headless"
command -v curl >/dev/null || packages="$packages curl"
[ -n "$packages" ] || exit 0
apt-get update -qq
# Installing must not start a daemon on port 80 or 8080.
# shellcheck disable=SC2086 # words are meant
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
