#!/bin/sh
# Runs a guest, and runs it again whenever it reboots: an example for bhyve, bhyveload and bhyvectl.
# Options and behaviour are those of FreeBSD's /usr/share/examples/bhyve/vmrun.sh.

LOADER=bhyveload
CTL=bhyvectl
HYPERVISOR=bhyve

EXIT_USAGE=1

MEMORY=512M
CPUS=2
TAPS=
NET=virtio-net
DISKS=
DISK_DEVICE=virtio-blk
CONSOLE=stdio
ISO=./release.iso
FIRMWARE=/usr/local/share/uefi-firmware/BHYVE_UEFI.fd
VNC_ADDRESS=127.0.0.1
VNC_PORT=5900
VNC_SIZE=w=1024,h=768
VNC_WAIT=
NEW_DISK=8G

# Words for the two programs are kept as positional parameters would be: quoted for eval.
bhyve_options=
loader_options=
passthru=
efi=
tablet=
install=

usage()
{
	cat >&2 <<-EOF
	usage: ${0##*/} [-aAEhiTuvw] [-c cpus] [-C console] [-d disk]
	       [-e name=value] [-f firmware] [-F size] [-G [w][address:]port]
	       [-H directory] [-I iso] [-l loader] [-L address] [-m memsize]
	       [-n network] [-p bus/slot/function] [-P port] [-t tap] vmname

	  -a  memory-mapped local APIC (the default)
	  -A  AHCI disks instead of virtio-blk
	  -c  virtual CPUs: a number or cpus=N,sockets=N,cores=N,threads=N ($CPUS)
	  -C  console device ($CONSOLE)
	  -d  disk, with bhyve's options after a comma; may be repeated (./diskdev)
	  -e  variable for the FreeBSD loader; may be repeated
	  -E  boot by UEFI firmware
	  -f  the firmware ($FIRMWARE)
	  -F  size of the UEFI frame buffer ($VNC_SIZE)
	  -G  gdb server of bhyve
	  -h  this text
	  -H  directory of the host for the FreeBSD loader
	  -i  boot the ISO image, even if the disk could be booted
	  -I  ISO image for the installation ($ISO)
	  -l  OS loader for bhyveload
	  -L  address of the VNC server ($VNC_ADDRESS)
	  -m  memory ($MEMORY)
	  -n  network device ($NET)
	  -p  pass a PCI device of the host through; may be repeated
	  -P  port of the VNC server ($VNC_PORT)
	  -t  tap interface; may be repeated (tap0)
	  -T  USB tablet
	  -u  the real-time clock keeps UTC
	  -v  wait for a VNC client before booting
	  -w  ignore unknown model-specific registers
	EOF
	exit $EXIT_USAGE
}

fail()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

# Prints its argument so that eval takes it for one word.
quote()
{
	printf "'%s' " "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# Whether a disk looks as if it could be booted: file(1) decides, as on FreeBSD; without it the
# signature of a boot sector does, or the magic number of a UFS1 or UFS2 superblock at 64 KiB.
bootable()
{
	if command -v file >/dev/null 2>&1; then
		file -bsL "$1" | grep -qiE 'boot sector|unix fast file system'
		return
	fi
	[ "$(od -An -tx1 -j510 -N2 "$1" 2>/dev/null | tr -d ' ')" = 55aa ] && return 0
	case "$(od -An -tx1 -j66908 -N4 "$1" 2>/dev/null | tr -d ' ')" in
	19015419|54190100) return 0 ;;
	esac
	return 1
}

while getopts aAc:C:d:e:Ef:F:G:hH:iI:l:L:m:n:p:P:t:Tuvw option; do
	case $option in
	a) bhyve_options="$bhyve_options -a" ;;
	A) DISK_DEVICE=ahci-hd ;;
	c) CPUS=$OPTARG ;;
	C) CONSOLE=$OPTARG ;;
	d) DISKS="$DISKS$(quote "$OPTARG")" ;;
	e) loader_options="$loader_options -e $(quote "$OPTARG")" ;;
	E) efi=yes ;;
	f) FIRMWARE=$OPTARG ;;
	F) VNC_SIZE=$OPTARG ;;
	G) bhyve_options="$bhyve_options -G $(quote "$OPTARG")" ;;
	H) loader_options="$loader_options -h $(quote "$OPTARG")" ;;
	i) install=yes ;;
	I) ISO=$OPTARG ;;
	l) loader_options="$loader_options -l $(quote "$OPTARG")" ;;
	L) VNC_ADDRESS=$OPTARG ;;
	m) MEMORY=$OPTARG ;;
	n) NET=$OPTARG ;;
	p) passthru="$passthru$(quote "$OPTARG")" ;;
	P) VNC_PORT=$OPTARG ;;
	t) TAPS="$TAPS$(quote "$OPTARG")" ;;
	T) tablet=yes ;;
	u) bhyve_options="$bhyve_options -u" ;;
	v) VNC_WAIT=,wait ;;
	w) bhyve_options="$bhyve_options -w" ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || usage
name=$1

require()
{
	command -v "$1" >/dev/null 2>&1 || fail "$1: not found in PATH"
}

require "$HYPERVISOR"
require "$CTL"
[ -n "$efi" ] || require "$LOADER"

: "${TAPS:=$(quote tap0)}"
: "${DISKS:=$(quote ./diskdev)}"
if [ -n "$passthru" ]; then
	# Devices reach memory that does not move.
	bhyve_options="$bhyve_options -S"
	loader_options="$loader_options -S"
fi

eval "set -- $DISKS"
first_disk=${1%%,*}

# What a VM of this name has left behind.
"$CTL" --vm="$name" --destroy >/dev/null 2>&1

echo "Launching virtual machine \"$name\" ..."

status=0
while :; do
	# What the loader may boot from, and the ISO image for the guest.
	boot_disks=
	iso_device=
	if [ -n "$install" ] || ! bootable "$first_disk"; then
		[ -r "$ISO" ] || fail "$ISO: no installation image to be read (-I)"
		boot_disks="-d $(quote "$ISO")"
		iso_device="-s 31:0,ahci-cd,$(quote "$ISO")"
	fi
	eval "set -- $DISKS"
	for disk; do
		[ ! -r "${disk%%,*}" ] || boot_disks="$boot_disks -d $(quote "${disk%%,*}")"
	done

	if [ -z "$efi" ]; then
		if [ "$CONSOLE" != stdio ]; then
			console_option="-c $(quote "$CONSOLE")"
		else
			console_option=
		fi
		eval "\"$LOADER\" $console_option -m \"$MEMORY\" $boot_disks $loader_options \"$name\""
		status=$?
		[ $status -eq 0 ] || break
	fi

	# Devices: bridges first, then networks, disks and the host's own.
	slot=2
	devices="-s 0:0,hostbridge -s 1:0,lpc"
	eval "set -- $TAPS"
	for tap; do
		devices="$devices -s $(quote "$slot:0,$NET,$tap")"
		slot=$((slot + 1))
	done
	eval "set -- $DISKS"
	for disk; do
		path=${disk%%,*}
		if [ ! -e "$path" ]; then
			truncate -s "$NEW_DISK" "$path" || fail "$path: cannot make it"
		fi
		if [ ! -r "$path" ] || [ ! -w "$path" ]; then
			fail "$path: cannot be read and written"
		fi
		devices="$devices -s $(quote "$slot:0,$DISK_DEVICE,$disk")"
		slot=$((slot + 1))
	done
	eval "set -- $passthru"
	for device; do
		devices="$devices -s $(quote "$slot:0,passthru,$device")"
		slot=$((slot + 1))
	done
	if [ -n "$efi" ]; then
		[ -r "$FIRMWARE" ] || fail "$FIRMWARE: no UEFI firmware to be read (-f)"
		devices="$devices -s $(quote "29:0,fbuf,tcp=$VNC_ADDRESS:$VNC_PORT,$VNC_SIZE$VNC_WAIT")"
		devices="$devices -l $(quote "bootrom,$FIRMWARE")"
	fi
	[ -z "$tablet" ] || devices="$devices -s 30:0,xhci,tablet"

	eval "\"$HYPERVISOR\" -c \"\$CPUS\" -m \"\$MEMORY\" -H -A -P $bhyve_options $devices" \
		"-l $(quote "com1,$CONSOLE") $iso_device \"\$name\""
	status=$?
	# 0 is a reboot; everything else ends the loop.
	[ $status -eq 0 ] || break
done

# What a crash has left is kept for a look.
case $status in
0|1|2) "$CTL" --vm="$name" --destroy >/dev/null 2>&1 ;;
esac
exit $status
