#!/bin/bash
# The first process of a machine that is made of this one, in namespaces of its own:
#
#     unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child \
#         machine.sh WORK PREFIX SITE REPOSITORY
#
# What it writes goes to memory and is gone with it. It has this machine's programs, no network,
# and in /opt/ranktap what `pip install` would put there: the repository's packages, and those of
# the environment SITE, run by the Python of PREFIX. The units are the repository's, with the two
# changes that such a machine needs (drop-in.conf below).
set -eu
work=$1 prefix=$2 site=$3 repository=$4
python=$(basename "$(dirname "$site")")
root=$work/root

mount --make-rprivate /
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/workdir" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/workdir" "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run" -o mode=755
mount -t tmpfs tmpfs "$root/tmp" -o mode=1777
mount -t tmpfs tmpfs "$root/dev" -o mode=755
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm" -o mode=1777
mount -t devpts devpts "$root/dev/pts" -o newinstance,ptmxmode=0666
ln -s pts/ptmx "$root/dev/ptmx"
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup" -o mode=755
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
else
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi

opt=$root/opt/ranktap
mkdir -p "$root/opt/python" "$opt/bin" "$opt/src" "$opt/lib/$python/site-packages"
mount --bind "$prefix" "$root/opt/python"
mount --bind "$site" "$opt/lib/$python/site-packages"
mount --bind "$repository" "$opt/src"
printf 'home = /opt/python/bin\n' >"$opt/pyvenv.cfg"
ln -s "/opt/python/bin/$python" "$opt/bin/python"
program() {
    printf '#!/opt/ranktap/bin/python\nimport sys\nfrom %s import %s as main\nsys.exit(main())\n' \
        "$2" "$3" >"$opt/bin/$1"
    chmod 755 "$opt/bin/$1"
}
program ranktapd ranktapd.cli main
program tensorboard tensorboard.main run_main

# What docs/operations.md says.
units=$root/etc/systemd/system
rm -rf "$units"
mkdir -p "$units" "$root/etc/ranktap"
cp "$repository"/systemd/*.service "$repository"/systemd/*.socket "$units"
cp "$repository/systemd/ranktap.sysusers" "$root/usr/lib/sysusers.d/ranktap.conf"
cp "$repository/systemd/ranktap.tmpfiles" "$root/usr/lib/tmpfiles.d/ranktap.conf"
cp "$repository/systemd/ranktapd.toml" "$root/etc/ranktap"

for unit in ranktapd ranktap-tensorboard; do
    mkdir "$units/$unit.service.d"
    cat >"$units/$unit.service.d/machine.conf" <<'END'
[Service]
Environment=PYTHONPATH=/opt/ranktap/src/client:/opt/ranktap/src/daemon
Environment=LD_LIBRARY_PATH=/opt/python/lib
# Device nodes cannot be made here.
PrivateDevices=no
END
done
cat >"$units/ranktapd.service.d/hasty.conf" <<'END'
[Service]
WatchdogSec=4
END
cat >"$units/machine.target" <<'END'
[Unit]
Requires=basic.target
Wants=ranktapd.socket ranktapd.service ranktap-tensorboard.service
END
cat >"$root/usr/lib/sysusers.d/machine.conf" <<'END'
u alice -
m alice ranktap
u eve -
END
: >"$root/etc/fstab"
: >"$root/etc/machine-id"

cd "$root"
mkdir former
pivot_root . former
umount --lazy /former
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=machine.target --show-status=no
