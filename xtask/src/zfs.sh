# Runs in the guest: makes pools in files, fills them, exports them, and writes all of them with their
# manifests to the disk. Deterministic contents; ZFS itself adds guids and times.
set -e
ln -sf /proc/mounts /etc/mtab
insmod /lib/modules/spl.ko
insmod /lib/modules/zfs.ko
mkdir -p /out /pools /z
mount -t tmpfs -o size=1800m tmpfs /pools
cd /pools

# disks NAME COUNT: empty files NAME.0, NAME.1, ...
disks() {
    list=
    i=0
    while [ $i -lt $2 ]; do
        truncate -s ${size:-64M} /pools/$1.$i
        list="$list /pools/$1.$i"
        i=$((i + 1))
    done
}

# create NAME OPTIONS VDEVS: a pool that is mounted below /z.
create() {
    name=$1
    shift
    zpool create -f -o cachefile=none -R /z -m /$name -O atime=off "$@"
}

# SIZE bytes of text, of one kind for each SEED.
text() { seq $2 3 99999999 | head -c $1; }

# A tree with whatever a reader could trip over.
tree() {
    (
        cd $1
        mkdir -p boot/kernel empty many deep/d0/d1/d2/d3 links names
        text 140000 1 >boot/kernel/kernel
        echo 'zfs_load="YES"' >boot/loader.conf
        for size in 0 1 24 100 112 511 512 513 4095 4096 4097; do text $size $size >s$size; done
        text 131072 3 >s131072
        text 131073 4 >s131073
        text 200001 5 >s200001
        gzip -9 <boot/kernel/kernel >noise.gz
        i=0
        while [ $i -lt 40 ]; do
            echo $i >many/entry-$i
            i=$((i + 1))
        done
        echo deep >deep/d0/d1/d2/d3/file
        truncate -s 3000000 hole
        truncate -s 5000000 island
        text 5000 6 | dd of=island bs=1000 seek=2500 conv=notrunc 2>/dev/null
        text 70000 7 | dd of=island bs=1000 seek=4000 conv=notrunc 2>/dev/null
        echo x >"names/with space"
        echo y >names/grüße-日本語
        echo z >names/$(head -c 250 /dev/zero | tr '\0' n)
        ln -s ../boot/kernel/kernel links/relative
        ln -s /boot/loader.conf links/absolute
        ln -s $(head -c 900 /dev/zero | tr '\0' l) links/long
        ln -s $(head -c 120 /dev/zero | tr '\0' m) links/middle
    )
}



# record POOL DATASET [FOLDER]: what must be read back. Four fields a line: kind, size, hash or target, path.
record() {
    (
        cd /z/${3:-$2}
        echo "dataset $2"
        find . -xdev -type d | sort | while read -r path; do echo "d 0 - ${path#./}"; done
        find . -xdev -type f | sort | while read -r path; do
            echo "f $(stat -c %s "$path") $(sha256sum <"$path" | cut -d' ' -f1) ${path#./}"
        done
        find . -xdev -type l | sort | while read -r path; do
            echo "l $(stat -c %s "$path") $(readlink "$path") ${path#./}"
        done
    ) >>/pools/$1.manifest.tmp
}

# done_with POOL: the manifest of all that was recorded, and the pool's own words.
done_with() {
    {
        echo "pool $1 $(zpool get -Hp -o value guid $1)"
        echo "bootfs $(zpool get -Hp -o value bootfs $1)"
        cat /pools/$1.manifest.tmp 2>/dev/null || true
    } >/pools/$1.manifest
    rm -f /pools/$1.manifest.tmp
    zpool export $1
    echo "made $1"
}

# The compressions, the checksums, large and small blocks.
disks codecs 1
create codecs -o ashift=9 codecs $list
n=0
for pair in off:on lz4:fletcher4 lzjb:fletcher2 zle:sha256 gzip-9:sha512 zstd-19:on; do
    zfs create -o compression=${pair%:*} -o checksum=${pair#*:} codecs/${pair%:*}
    d=/z/codecs/${pair%:*}
    text 140000 $n >$d/text
    truncate -s 100000 $d/zeros
    { echo start; head -c 3000 /dev/zero; text 500 1; head -c 60000 /dev/zero; echo end; } >$d/mixed
    text 30000 9 | gzip -9 >$d/noise
    record codecs codecs/${pair%:*}
    n=$((n + 1))
done
for sum in skein edonr blake3; do
    zfs create -o checksum=$sum codecs/$sum
    text 50000 $n >/z/codecs/$sum/text
    record codecs codecs/$sum
done
echo passphrase | zfs create -o encryption=on -o keyformat=passphrase codecs/secret
echo secret >/z/codecs/secret/file
zfs create -V 1M codecs/volume
done_with codecs

# Everything that OpenZFS has, on one disk with 4 KiB sectors: the tree, children, snapshots, a clone.
disks tank 1
create tank -o ashift=12 -O compression=lz4 tank $list
zfs create tank/ROOT
zfs create tank/ROOT/default
tree /z/tank/ROOT/default
zfs snapshot tank/ROOT/default@first
record tank tank/ROOT/default@first tank/ROOT/default
rm -r /z/tank/ROOT/default/many
echo changed >/z/tank/ROOT/default/boot/loader.conf
zfs clone tank/ROOT/default@first tank/ROOT/clone
echo clone >/z/tank/ROOT/clone/clone
echo root >/z/tank/file
record tank tank/ROOT/default
record tank tank/ROOT/clone
record tank tank
zpool set bootfs=tank/ROOT/default tank
done_with tank

# As FreeBSD's installer makes it.
disks zroot 1
create zroot -o ashift=12 -o compatibility=freebsd-13.2 -O compression=lz4 -O mountpoint=none zroot $list
zfs create -o mountpoint=none zroot/ROOT
zfs create -o mountpoint=/zroot/default zroot/ROOT/default
zfs create -o mountpoint=/zroot/tmp zroot/tmp
zfs create -o mountpoint=/zroot/usr -o canmount=off zroot/usr
zfs create zroot/usr/home
tree /z/zroot/default
record zroot zroot/ROOT/default zroot/default
zpool set bootfs=zroot/ROOT/default zroot
done_with zroot

# What GRUB 2.06 can read.
disks grub 1
create grub -o ashift=9 -o compatibility=grub2-2.06 grub $list
zfs create -o compression=lz4 grub/boot
tree /z/grub/boot
record grub grub/boot
done_with grub

# Before feature flags: pool version 28; and the znodes of before system attributes.
disks old 1
create old -o version=28 -O version=4 old $list
tree /z/old
record old old
done_with old

# Redundancy.
redundant() {
    name=$1
    count=$2
    shift 2
    disks $name $count
    create $name -o ashift=${ashift:-12} -O compression=lz4 $name "$@" $list
    tree /z/$name
    record $name $name
    done_with $name
}
ashift=9
redundant two 2 mirror
redundant rz1 3 raidz1
ashift=12
redundant rz2 4 raidz2
redundant rz3 5 raidz3
redundant stripe 2

# A top-level vdev that was removed: its blocks are elsewhere. The other must have space for them and the slop.
size=256M
disks removed 2
size=
create removed -o ashift=9 -O compression=off removed $list
tree /z/removed
record removed removed
sync
zpool remove removed /pools/removed.0
zpool wait -t remove removed
done_with removed
rm removed.0

# Gang blocks.
disks gang 1
echo 4000 >/sys/module/zfs/parameters/metaslab_force_ganging
echo 100 >/sys/module/zfs/parameters/metaslab_force_ganging_pct
create gang -o ashift=9 -O compression=off gang $list
text 100000 1 >/z/gang/text
text 9000 2 >/z/gang/small
record gang gang
done_with gang
echo 16777217 >/sys/module/zfs/parameters/metaslab_force_ganging

# Sizes: large blocks, large dnodes, a large directory, attributes that spill, odd rules for names.
disks sizes 1
create sizes -o ashift=9 -O compression=zstd sizes $list
zfs create -o recordsize=1M -o compression=off -o dnodesize=2k -o xattr=sa sizes/large
for i in $(seq 180); do text 12000 1; done >/z/sizes/large/long
text 1500 1 >/z/sizes/large/small
ln -s $(head -c 900 /dev/zero | tr '\0' l) /z/sizes/large/link
setfattr -n user.long -v $(text 3000 1 | tr '\n' _) /z/sizes/large/small
record sizes sizes/large
zfs create -o recordsize=512 -o xattr=sa sizes/small
text 200000 1 >/z/sizes/small/tree
for name in spill spill2; do
    text 1500 1 >/z/sizes/small/$name
    setfattr -n user.long -v $(text 3000 1 | tr '\n' _) /z/sizes/small/$name
done
ln -s /z/sizes /z/sizes/small/link
setfattr -h -n trusted.long -v $(text 300 1 | tr '\n' _) /z/sizes/small/link
truncate -s 1000G /z/sizes/small/vast
echo end >>/z/sizes/small/vast
truncate -s 400000 /z/sizes/small/vast
record sizes sizes/small
zfs create sizes/many
# Links, as thousands of dnodes make a large image.
(
    cd /z/sizes/many
    echo many >entry-0000.txt
    echo 7 >other
    seq -w 1 3000 | while read -r n; do ln entry-0000.txt entry-$n.txt; done
)
record sizes sizes/many
zfs create -o casesensitivity=insensitive -o normalization=formD -o utf8only=on sizes/folded
echo Mixed >/z/sizes/folded/MixedCase
echo ü >/z/sizes/folded/grüße
record sizes sizes/folded
zfs create -o longname=on sizes/long
echo long >/z/sizes/long/$(head -c 900 /dev/zero | tr '\0' n)
record sizes sizes/long
done_with sizes

echo "writing"
tar c -C /pools . | gzip -1 >/dev/vda
sync
echo "all pools made"
