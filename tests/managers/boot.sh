# The first process of a machine that has nothing of its own but its namespaces: makes a place for systemd, and becomes it.
# Arguments: a directory of the test's, the handoff command, and where the units are.
set -eu
test=$1 handoff=$2 units=$3

mount --make-rprivate /
# A control group of its own, whatever hierarchy this machine has: systemd takes the root of its namespace for the root of all.
mount -t cgroup2 cgroup2 "$test/cgroup"
own=$test/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/${test##*/}
mkdir "$own"
echo 0 >"$own/cgroup.procs"
umount "$test/cgroup"
# shellcheck disable=SC2016  # It is the inner shell that knows them.
exec unshare --cgroup sh -eu -c '
    test=$1 handoff=$2 units=$3
    # Nothing is to be changed that belongs to the machine outside.
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    ip link set lo up

    # What the units name: their user, /usr/local/bin/handoff, /etc/kv, /run and /var/lib.
    mkdir -p "$test/etc/kv" "$test/etc/systemd/system" "$test/var/lib/systemd"
    for file in passwd group nsswitch.conf ld.so.cache; do
        cp "/etc/$file" "$test/etc/"
    done
    # Without it this would be a first boot, which enables every unit.
    tr -d - </proc/sys/kernel/random/uuid >"$test/etc/machine-id"
    echo "kv:x:967:967::/:/usr/sbin/nologin" >>"$test/etc/passwd"
    echo "kv:x:967:" >>"$test/etc/group"
    cp "$units/handoff.toml" "$test/etc/kv/"
    cp "$units"/*.service "$units"/*.socket "$test/etc/systemd/system/"
    for target in sysinit basic shutdown sockets network multi-user; do
        printf "[Unit]\nDefaultDependencies=no\n" >"$test/etc/systemd/system/$target.target"
    done
    mount --bind "$test/etc" /etc
    mount --bind "$test/var/lib" /var/lib
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs -o mode=755 tmpfs /usr/local/bin
    cp "$handoff" /usr/local/bin/handoff
    exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=handoff SYSTEMD_UNIT_PATH=/etc/systemd/system \
        /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
' sh "$test" "$handoff" "$units"
