#!/bin/sh
# Recipe of volumes.tar.xz: runs as init of a Linux guest that has the programs and modules named
# below and writes a tar archive to its first NVMe disk. Every array and volume holds lines of 16
# bytes that count from 0.
set -x
PATH=/bin:/sbin:/usr/bin:/usr/sbin; export PATH
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /run/lock /run/lvm /etc/lvm /tmp /work; mount -t tmpfs tmp /work; mount -t tmpfs run /run
mkdir -p /run/lock /run/lvm
for m in loop libcrc32c raid0 raid1 raid456 raid10 linear dm-mod dm-mirror dm-raid dm-thin-pool dm-cache dm-snapshot; do
    modprobe $m
done
hostname tests; cd /work
fill() { seq -f '%015.0f' 0 3000000 | head -c "$(blockdev --getsize64 "$1")" >"$1"; sync; }

# md: name, superblock, level, devices, further options.
md() {
    name=$1 metadata=$2 level=$3 count=$4; shift 4
    devices= n=0
    while [ $n -lt $count ]; do
        truncate -s "${size:-448}K" "$name-$n"
        devices="$devices $(losetup -f --show "$name-$n")"; n=$((n + 1))
    done
    offset=; case $metadata in 1.[12]) offset=--data-offset=128K ;; esac
    clean='--assume-clean --bitmap=none'; case $level in 0 | linear) clean= ;; esac
    yes | mdadm --create "/dev/md/$name" --homehost=tests --name="$name" -e "$metadata" -l "$level" \
        -n "$count" $offset $clean "$@" $devices || echo "FAILED $name"
    fill "/dev/md/$name"; blockdev --getsize64 "/dev/md/$name" >"$name.size"
    if [ -n "$later" ]; then $later "/dev/md/$name" $devices; fi
    mdadm --stop "/dev/md/$name"
    for device in $devices; do losetup -d "$device"; done
}
wait_clean() { while grep -q 'recovery\|resync' /proc/mdstat; do sleep 1; done; }
md one 1.2 1 2
md oneend 1.0 1 2
md onestart 1.1 1 2
size=256 md oldone 0.90 1 2
size=256 md oldfive 0.90 5 3 --chunk=4
md zero 1.2 0 3 --chunk=4
md row 1.2 linear 3 --rounding=4
md four 1.2 4 3 --chunk=4
md five 1.2 5 4 --chunk=4
md fivera 1.2 5 3 --chunk=4 --layout=ra
md fivepf 1.2 5 3 --chunk=4 --layout=parity-first
md six 1.2 6 5 --chunk=4
for l in ddf-zero-restart ddf-N-restart ddf-N-continue left-asymmetric-6 right-symmetric-6 parity-first; do
    md "six$l" 1.2 6 5 --chunk=4 --layout=$l
done
md tennear 1.2 10 4 --chunk=4 --layout=n2
md tenodd 1.2 10 3 --chunk=4 --layout=n2
md tenfar 1.2 10 3 --chunk=4 --layout=f2
md tenoffset 1.2 10 3 --chunk=4 --layout=o2
# One member fails, and what is written then isn't on it.
fail() {
    mdadm "$1" --fail "$2"; mdadm "$1" --remove "$2"
    seq -f '%015.0f' 5000000 8000000 | head -c "$(blockdev --getsize64 "$1")" >"$1"; sync
}
later=fail md stale 1.2 5 3 --chunk=4
later=fail md oldstale 0.90 1 2
later=

# LVM.
cat >/etc/lvm/lvm.conf <<'END'
activation { udev_sync=0 udev_rules=0 verify_udev_operations=1 monitoring=0 raid_region_size=64 mirror_region_size=64 }
devices { dir="/dev" scan=["/dev"] use_devicesfile=0 md_component_detection=0 }
allocation { cache_pool_metadata_require_separate_pvs=0 }
global { cache_check_executable="" thin_check_executable="" }
backup { backup=0 archive=0 }
END
pvs=
for n in 0 1 2 3 4; do
    size=4M; [ $n = 4 ] && size=16M
    truncate -s $size pv-$n
    pvs="$pvs $(losetup -f --show pv-$n)"
done
pvcreate --metadatasize 60k --dataalignment 64k $pvs
vgcreate -s 16k Vol-Group $pvs
set -- $pvs
lv() {
    name=$1; shift
    lvcreate -y -Wn -Zn --nosync -n "$name" "$@" Vol-Group || lvcreate -y -Wn -Zn -n "$name" "$@" Vol-Group || echo "FAILED $name"
    fill "/dev/Vol-Group/$name"; blockdev --getsize64 "/dev/Vol-Group/$name" >"lvm-$name.size"
}
lvcreate -y -Wn -Zn -l 3 -n gap Vol-Group "$1"
lv lv_root -l 5
lvcreate -y -Wn -Zn -l 1 -n stop Vol-Group "$1"
lvextend -l +7 Vol-Group/lv_root "$1" "$2"; fill /dev/Vol-Group/lv_root
blockdev --getsize64 /dev/Vol-Group/lv_root >lvm-lv_root.size
lv a-b -l 8 -i 4 -I 4
lv raid1 --type raid1 -m 1 -l 6
lv mirror --type mirror --mirrorlog core -m 1 -l 6
lv raid0 --type raid0 -i 3 -I 4 -l 6
lv raid4 --type raid4 -i 3 -I 4 -l 6
lv raid5 --type raid5 -i 3 -I 4 -l 6
lv raid5n --type raid5_n -i 3 -I 4 -l 6
lv raid6 --type raid6 -i 3 -I 4 -l 6
lv raid6nc --type raid6_nc -i 3 -I 4 -l 6
lv raid6ls --type raid6_ls_6 -i 3 -I 4 -l 6
lv raid10 --type raid10 -i 2 -m 1 -I 4 -l 6
lvcreate -y -s -l 8 -n snap Vol-Group/gap
lvcreate -y -Zn --type thin-pool -L 1M --poolmetadatasize 2M -n pool Vol-Group "$5"
lvcreate -y -Wn -V 256k --thinpool pool -n thin Vol-Group
lvcreate -y -Wn -Zn -l 8 -n cached Vol-Group
lvcreate -y --type cache-pool -L 1M --poolmetadatasize 2M -n cpool Vol-Group "$5" && lvconvert -y --type cache --cachepool cpool Vol-Group/cached
lvs -a -o +devices,seg_type Vol-Group
vgchange -an Vol-Group
dmsetup remove_all
vgcfgbackup -f lvm.text Vol-Group
for device in $pvs; do losetup -d "$device"; done

# Sectors that device mapper encrypted, with the key 10 11 12 … (hexadecimal), from sector 70000 on
for m in dm-crypt xts essiv serpent_generic twofish_generic; do modprobe $m; done
key() { seq -f '%02.0f' 10 $((9 + $1)) | tr -d '\n'; }
for cipher in serpent-xts-plain64:64 serpent-cbc-plain:32 twofish-xts-plain64:32 twofish-cbc-essiv:sha256:32 aes-xts-plain64be:64; do
    bytes=${cipher##*:} cipher=${cipher%:*}
    truncate -s 2K "crypt-$cipher-$bytes"
    device=$(losetup -f --show "crypt-$cipher-$bytes")
    dmsetup create --noudevsync crypt --table "0 4 crypt $cipher $(key $bytes) 70000 $device 0" || echo "FAILED $cipher"
    dmsetup mknodes crypt
    fill /dev/mapper/crypt
    dmsetup remove --noudevsync crypt; losetup -d "$device"
done
sync
tar cf /dev/nvme0n1 -S * 2>/dev/null || tar cf /dev/nvme0n1 *
sync; echo ALL-DONE; poweroff -f
