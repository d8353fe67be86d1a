#!/usr/bin/env bash
# Runs one static program in an emulated machine with several NUMA nodes.
#
# Few people have a machine with several nodes, and no CI has. QEMU makes one in software: slow, without AVX-512, and
# with nothing to say about bandwidth, but its kernel places pages and threads exactly as a real one does.
#
# usage: tools/numa-vm.sh [options] PROGRAM [ARGUMENT…]
#   -n N       nodes (2)                         -c N   CPUs of a node (2)
#   -m MIB     memory of a node (768)            -d MIB size of the disk (256)
#   -i FOLDER  its content is in /data of the guest, on ext4
#   -o FOLDER  the guest's folder /data/out is copied into this one, whatever the program's status
#   -t SECONDS limit (300)
#   -q         only say whether everything is there
#
# PROGRAM is linked statically:
#   RUSTFLAGS="-C target-feature=+crt-static" cargo build --target x86_64-unknown-linux-gnu
# It runs as root, in /data, with a tmpfs for TMPDIR, and NUMA_VM_NODES and NUMA_VM_CPUS say what it should find.
# As a runner of cargo (CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER) the script takes `cargo test` and `cargo run` there.
#
# Exit status: the program's own; 2 wrong usage; 77 something is missing; 124 over the limit; 125 the guest ended
# without a status. QEMU's console goes to standard output.
set -euo pipefail

# mke2fs is often outside of an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin

usage() { sed -n '2,/^set -euo/{s/^# \{0,1\}//p}' -- "$0" >&2; exit 2; }
missing() { printf '== SKIPPED: no emulated machine here: %s is missing. `cargo tools numa-vm --install` gets it (Debian, as root)\n' "$1" >&2; exit 77; }

nodes=2 cpus=2 node_mib=768 disk_mib=256 limit=300 input='' output='' only_ask=''
while getopts 'n:c:m:d:i:o:t:q' option; do
    case $option in
        n) nodes=$OPTARG ;;
        c) cpus=$OPTARG ;;
        m) node_mib=$OPTARG ;;
        d) disk_mib=$OPTARG ;;
        i) input=$OPTARG ;;
        o) output=$OPTARG ;;
        t) limit=$OPTARG ;;
        q) only_ask=yes ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))

work=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)/target/numa-vm
kernel=$(printf '%s\n' "$work"/boot/vmlinuz-* | sort -V | tail -n 1)
for needed in qemu-system-x86_64 busybox cpio mke2fs debugfs; do
    command -v "$needed" >/dev/null || missing "$needed"
done
[[ -e $kernel ]] || missing "a kernel in target/numa-vm/boot"
[[ -z $only_ask ]] || exit 0
(($# > 0)) && [[ -f $1 ]] || usage
# What an earlier run left would be taken for what this one wrote.
[[ -z $output || ! -e $output/out ]] || { printf '%s/out is there already\n' "$output" >&2; exit 2; }

run=$(mktemp -d -- "$work/run.XXXXXX")
trap 'rm -rf -- "$run"' EXIT

# All that the guest has: busybox, the program, and an init that mounts, runs, reports and powers off.
mkdir -p -- "$run/root/"{bin,program,dev,proc,sys,run,data}
cp -- "$(command -v busybox)" "$run/root/bin/busybox"
program=/program/$(basename -- "$1")
cp -- "$1" "$run/root$program"
shift
{
    printf '#!/bin/busybox sh\n'
    printf 'export NUMA_VM_NODES=%q NUMA_VM_CPUS=%q\n' "$nodes" "$cpus"
    cat <<'INIT'
/bin/busybox --install -s /bin
export PATH=/bin TMPDIR=/run RUST_BACKTRACE=0
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t ext4 /dev/nvme0n1 /data
cd /data
INIT
    printf '%q ' "$program" "$@"
    cat <<'INIT'

echo "numa-vm: exit status $?, $(cut -d' ' -f1 /proc/uptime) s after the kernel's start"
cd /
umount /data
poweroff -f
INIT
} >"$run/root/init"
chmod +x "$run/root/init" "$run/root$program"
(cd -- "$run/root" && find . | cpio --create --format newc --quiet | gzip -1) >"$run/initrd.gz"

truncate --size "${disk_mib}M" "$run/disk.img"
mke2fs -q -t ext4 ${input:+-d "$input"} "$run/disk.img"

machine=(
    -nodefaults -no-user-config -display none -no-reboot -serial stdio -monitor none
    -machine q35 -accel tcg,thread=multi -cpu max
    -m "$((nodes * node_mib))M" -smp "$((nodes * cpus)),sockets=$nodes,cores=$cpus,threads=1"
    -drive "if=none,id=disk,file=$run/disk.img,format=raw,cache=none,aio=threads" -device nvme,drive=disk,serial=disk
    # Without no_timer_check a guest on a busy machine may miss its timer, and panics.
    -kernel "$kernel" -initrd "$run/initrd.gz" -append 'console=ttyS0 quiet panic=-1 no_timer_check'
)
for ((node = 0; node < nodes; node++)); do
    machine+=(-object "memory-backend-ram,id=memory$node,size=${node_mib}M")
    machine+=(-numa "node,nodeid=$node,cpus=$((node * cpus))-$((node * cpus + cpus - 1)),memdev=memory$node")
done
for ((node = 0; node < nodes; node++)); do
    for ((other = 0; other < nodes; other++)); do
        ((other == node)) || machine+=(-numa "dist,src=$node,dst=$other,val=21")
    done
done

start=$SECONDS
set +e
timeout "$limit" qemu-system-x86_64 "${machine[@]}" </dev/null 2>&1 | tr -d '\r' | tee -- "$run/console"
ended=${PIPESTATUS[0]}
set -e
printf 'numa-vm: %d nodes with %d CPUs each, %d s in all\n' "$nodes" "$cpus" "$((SECONDS - start))"
((ended != 124)) || { printf 'numa-vm: the guest took longer than %d s\n' "$limit" >&2; exit 124; }
if [[ -n $output ]]; then
    mkdir -p -- "$output"
    debugfs -R "rdump /out \"$output\"" "$run/disk.img" 2>"$run/debugfs" || true
    [[ -e $output/out ]] || { printf 'numa-vm: no /data/out came back: ' >&2; tail -n +2 -- "$run/debugfs" >&2; }
fi
status=$(sed -n 's/^numa-vm: exit status \([0-9]*\),.*/\1/p' "$run/console" | tail -n 1)
exit "${status:-125}"
