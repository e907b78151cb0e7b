# sh deb.sh PACKAGE NEXT, as root in a mount namespace of its own: the life of a package on a copy of this machine, all
# changes to which are in memory and go with the namespace.
set -eu
package=$1 next=$2
dir=$(mktemp -d)
trap 'cd /; umount -R "$dir"; rmdir "$dir"' EXIT
mount --make-rprivate /
mount -t tmpfs -o mode=0755 vortex "$dir"
mkdir "$dir/changes" "$dir/work" "$dir/root"
mount -t overlay -o "lowerdir=/,upperdir=$dir/changes,workdir=$dir/work" vortex "$dir/root"
mount --bind /dev "$dir/root/dev"
cp "$package" "$dir/root/package.deb"
cp "$next" "$dir/root/next.deb"

fail() {
    echo "deb.sh: $*" >&2
    exit 1
}
inside() {
    chroot "$dir/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
}
mode() {
    stat -c '%a %U:%G' "$dir/root/$1"
}
state() {
    inside dpkg-query --show --showformat '${db:Status-Abbrev}${Version}' vortex-agent
}
config=$dir/root/etc/vortex-agent/config.toml

inside dpkg --install /package.deb
[ "$(state)" = "ii 0.1.0-1" ] || fail "after the installation: $(state)"
[ "$(inside vortex-agent --version)" = "vortex-agent 0.1.0" ] || fail "the program does not run"
[ "$(mode etc/vortex-agent/config.toml)" = "600 root:root" ] || fail "$(mode etc/vortex-agent/config.toml)"
user=$(inside getent passwd vortex-agent) || fail "there is no user"
case $user in
*:/nonexistent:/usr/sbin/nologin) ;;
*) fail "$user" ;;
esac
[ -n "$(inside getent group vortex-agent)" ] || fail "there is no group"

# What was configured stays, also when there is a newer package; what the daemon leaves goes with it.
echo '# mine' >>"$config"
mkdir -p "$dir/root/var/lib/vortex-agent" "$dir/root/var/cache/vortex-agent"
echo found >"$dir/root/var/cache/vortex-agent/files"
inside dpkg --install /next.deb
[ "$(state)" = "ii 0.1.0-2" ] || fail "after the upgrade: $(state)"
tail -n 1 "$config" | grep -q '^# mine$' || fail "the upgrade has changed the configuration"
[ "$(inside getent passwd vortex-agent)" = "$user" ] || fail "the upgrade has changed the user"

inside dpkg --remove vortex-agent
[ "$(state)" = "rc 0.1.0-2" ] || fail "after the removal: $(state)"
[ ! -e "$dir/root/usr/bin/vortex-agent" ] || fail "the program is still there"
[ -e "$config" ] || fail "the configuration went without being purged"

inside dpkg --purge vortex-agent
rm "$dir/root/package.deb" "$dir/root/next.deb"
# Whatever is not as it was. dpkg's own books are dpkg's, so are the copies that passwd's programs keep, and the index
# that man makes of all its pages.
cd "$dir/changes"
left=$(find . -mindepth 1 \
    -not -path './var/lib/dpkg/*' -not -path './var/log/*' \
    -not -path './etc/*-' -not -path './etc/.pwd.lock' -not -path './var/cache/man/*' \
    -exec sh -c '
        for path; do
            if [ -d "$path" ] && [ ! -L "$path" ]; then
                [ -d "/$path" ] || echo "$path"
            elif ! cmp -s "$path" "/$path"; then
                echo "$path"
            fi
        done' sh {} +)
[ -z "$left" ] || fail "left behind or changed: $left"
