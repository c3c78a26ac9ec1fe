#!/usr/bin/env bash
# What a store has to stand that runs for long or holds much: each scenario starts a
# fresh server, prints a small table and a verdict, and ends with 1 where an aim was
# missed.
#
#   deploy/bench/scenarios.sh space|stalls|catchup|restart|idle
#
# Sizes are set by environment variables, named below with their defaults; small ones
# check the script and say nothing about the aims. DIR is where the data goes (default:
# a directory of TMPDIR), DURABILITY=synced|replicated what the topics promise.
# catchup, and restart with COLD=1, need root, to empty the page cache.
set -euo pipefail
cd "$(dirname "$0")/../.."
scenario=${1:-}
work=$(mktemp -d ${DIR:+-p "$DIR"})
durability=${DURABILITY:-synced}
server=
missed=0
finish() {
	if [ -n "$server" ]; then
		kill "$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap finish EXIT

go build -trimpath -o "$work/runnel" ./services/runnel
go build -trimpath -o "$work/load" ./deploy/bench/load
address=127.0.0.1:$((20000 + RANDOM % 20000))
data=$work/data
volumes=$data/storage/volumes
runnel() { "$work/runnel" --bootstrap "$address" "$@"; }
now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000000)); }
is() { awk "BEGIN {exit !($1)}"; }

# launch starts a server on what is there, and returns once a command succeeds.
launch() {
	"$work/runnel" up --data-dir "$data" --listen "$address" >>"$work/log" 2>&1 &
	server=$!
	until "$@" >/dev/null 2>&1; do
		kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
	done
}
start() {
	rm -rf "$data"
	sync
	launch runnel topics list
}
stop() {
	kill "${1:--TERM}" "$server"
	wait "$server" 2>/dev/null || true
	server=
}
create() { # topic, partitions, settings
	local topic=$1 partitions=$2 flags=(--config "durability=$durability")
	shift 2
	for setting in "$@"; do flags+=(--config "$setting"); done
	runnel topics create "$topic" --partitions "$partitions" "${flags[@]}" >/dev/null
}
load() { # name, flags: prints what was told on the way and leaves the summary in $work/name
	local name=$1
	shift
	"$work/load" -bootstrap "$address" -metrics "http://$address/metrics" -data "$volumes" -pid "$server" -csv "${CSV:-$work/csv}.$name" "$@" | tee "$work/$name" | grep -E '^(second|#)' || true
}
value() { awk -v name="$2" '$1 == name {print $2}' "$work/$1"; }
field() { sed -n "s/^ *\"$1\": \([0-9.e+-]*\),*$/\1/p" | head -1; }
verdict() { # what, condition for awk, figure
	if is "$2"; then
		echo "| $1 | $3 | met |"
	else
		echo "| $1 | $3 | MISSED |"
		missed=1
	fi
}
table() { printf '\n| %s | figure | |\n|---|---|---|\n' "$1"; }
row() { echo "| $1 | $2 | |"; }
memory() { awk '/^VmRSS/ {printf "%d", $2 / 1024}' "/proc/$server/status"; }
ticks() { awk '{print $14 + $15}' "/proc/$server/stat"; }
drop() {
	sync
	echo 3 2>/dev/null >/proc/sys/vm/drop_caches || { echo "this scenario needs root, to empty the page cache" >&2; exit 2; }
}
# pause waits without a process that takes processor time.
pause() { read -rt "$1" <> <(:) || true; }

# space: SECONDS_EACH=600 of HOT_MB=20 to one partition kept for HOT_MS=60000 ms,
# COLD_MB=5 to 200 partitions that keep COLD_BYTES=4194304 each, and KEPT_MB=1 to one
# partition that keeps all; then the same without retention, to compare with.
# VOLUME_MIB=1024 is what a volume takes.
space() {
	local seconds=${SECONDS_EACH:-600} name
	for name in cleaning plain; do
		start
		if [ $name = cleaning ]; then
			create hot 1 "retention.ms=${HOT_MS:-60000}"
			create cold 200 retention.ms=-1 "retention.bytes=${COLD_BYTES:-4194304}"
		else
			create hot 1 retention.ms=-1
			create cold 200 retention.ms=-1
		fi
		create kept 1 retention.ms=-1
		load $name -seconds "$seconds" -stall 1h -target "hot:1:${HOT_MB:-20}" -target "cold:200:${COLD_MB:-5}" -target "kept:1:${KEPT_MB:-1}"
		stop
	done
	local over p99 ratio cpu
	over=$(value cleaning over_twice_live_mib)
	p99=$(value plain p99_ms)
	ratio=$(awk "BEGIN {print $(value cleaning p99_ms) / ($p99 > 0 ? $p99 : 1)}")
	cpu=$(awk "BEGIN {print $(value cleaning server_cpu_percent) - $(value plain server_cpu_percent)}")
	table "space: $seconds s, $durability"
	row "acknowledged, with cleaning and without" "$(value cleaning acked_mb_per_s) and $(value plain acked_mb_per_s) MB/s"
	row "processor of the server, with cleaning and without" "$(value cleaning server_cpu_percent) and $(value plain server_cpu_percent) % of a core"
	row "disk at most, with cleaning and without" "$(value cleaning max_disk_mib) and $(value plain max_disk_mib) MiB"
	verdict "disk above twice the live bytes at most ${VOLUME_MIB:-1024} MiB" "${over:-1e9} <= ${VOLUME_MIB:-1024}" "${over:-unknown} MiB"
	verdict "p99 of produce under 2 x that without cleaning" "$ratio < 2" "$(value cleaning p99_ms) against $p99 ms: $ratio"
	verdict "processor for cleaning under 5 % of a core" "$cpu < 5" "$cpu %"
	verdict "no failures" "$(value cleaning failures) + $(value plain failures) == 0" "$(value cleaning failures) and $(value plain failures)"
}

# stalls: SECONDS_EACH=600 at RATE_MB of 1 KiB records to PARTITIONS=8 partitions that
# keep KEEP_MIB=4096 together, so that volumes are sealed and cleaned meanwhile. RATE_MB
# is 70 % of what RECORDS=12000000 took before, into a topic like it, so that sealing and
# removal are in that too, unless it is set. CSV=FILE keeps a line per second. In the DISK_SECONDS=60 before and after, the simplest writer puts as much
# into one file: what it waits for is the disk. Where DIR is in memory (tmpfs), all that is
# left is the store's own.
stalls() {
	local seconds=${SECONDS_EACH:-600} partitions=${PARTITIONS:-8} full=given
	local keep=$((${KEEP_MIB:-4096} * 1048576 / partitions))
	start
	if [ -z "${RATE_MB:-}" ]; then
		create full "$partitions" retention.ms=-1 "retention.bytes=$keep"
		full=$(runnel bench produce --topic full --record-size 1024 --records "${RECORDS:-12000000}" -o json 2>/dev/null | field megabytes_per_second)
		RATE_MB=$(awk "BEGIN {print $full * 0.7}")
		start_again
	fi
	create steady "$partitions" retention.ms=-1 "retention.bytes=$keep"
	alone before "$RATE_MB"
	load stalls -seconds "$seconds" -stall "${STALL:-100ms}" -target "steady:$partitions:$RATE_MB"
	stop
	rm -rf "$data"
	alone after "$RATE_MB"
	table "stalls: $seconds s at $RATE_MB MB/s (full rate: $full), $durability"
	row "acknowledged" "$(value stalls acked_mb_per_s) MB/s"
	row "p50, p99, p99.99" "$(value stalls p50_ms), $(value stalls p99_ms), $(value stalls p9999_ms) ms"
	row "seconds with a record above ${STALL:-100ms}" "$(value stalls stalled_seconds)"
	row "the simplest writer before and after: p50" "$(value before p50_ms) and $(value after p50_ms) ms"
	row "longest" "$(value before max_ms) and $(value after max_ms) ms"
	row "seconds with more than ${STALL:-100ms}" "$(value before stalled_seconds) and $(value after stalled_seconds) of ${DISK_SECONDS:-60}"
	verdict "no record took over 100 ms" "$(value stalls max_ms) <= 100" "$(value stalls max_ms) ms"
	verdict "no pause between acknowledgements over 100 ms" "$(value stalls pause_ms) <= 100" "$(value stalls pause_ms) ms"
	verdict "no failures" "$(value stalls failures) == 0" "$(value stalls failures)"
}
alone() { # name, MB per second
	"$work/load" -disk "$work/disk" -seconds "${DISK_SECONDS:-60}" -stall "${STALL:-100ms}" -target "disk:1:$2" >"$work/$1"
}
start_again() {
	stop
	start
}

# catchup: reads MIB=5120 from PARTITIONS=1 partitions, none of it in the page cache,
# beside reading the same files in order.
catchup() {
	local mib=${MIB:-5120} partitions=${PARTITIONS:-1} begin disk share rate
	start
	create old "$partitions" retention.ms=-1
	runnel bench produce --topic old --record-size 1024 --records $((mib * 1024)) -o json >/dev/null 2>&1
	stop
	drop
	begin=$(now)
	find "$volumes" -name '*.vlog' | sort | while read -r file; do dd "if=$file" of=/dev/null bs=1M status=none; done
	disk=$(since "$begin")
	disk=$(awk "BEGIN {print $(du -cB1 "$volumes"/*/*.vlog | tail -1 | cut -f1) / 1e3 / $disk}")
	launch runnel topics describe old
	drop
	rate=$(runnel bench consume --topic old --records $((mib * 1024)) -o json 2>/dev/null | field megabytes_per_second)
	share=$(awk "BEGIN {print $rate / $disk}")
	table "catch-up: $mib MiB from $partitions partitions, page cache empty"
	row "the files in order" "$disk MB/s"
	row "bench consume" "$rate MB/s"
	verdict "at least 0.5 of the disk's rate" "$share >= 0.5" "$share"
}

# restart: kills a server with GIB=20 in PARTITIONS=1000 partitions while it is written
# to, and times the next one up to its first acknowledged record. COLD=1 empties the
# page cache before.
restart() {
	local gib=${GIB:-20} partitions=${PARTITIONS:-1000} run begin ready served clean
	start
	create many "$partitions" retention.ms=-1
	runnel bench produce --topic many --record-size 16384 --records $((gib * 65536)) -o json >/dev/null 2>&1
	table "restart: $gib GiB in $partitions partitions, $(find "$volumes" -mindepth 1 -maxdepth 1 -type d | wc -l) volumes, $durability"
	for run in 1 2 3; do
		runnel bench produce --topic many --record-size 1024 --records 100000000 -o json >/dev/null 2>&1 &
		local writer=$!
		pause 3
		stop -9
		kill "$writer" 2>/dev/null || true
		wait "$writer" 2>/dev/null || true
		[ -z "${COLD:-}" ] || drop
		begin=$(now)
		launch runnel topics list
		ready=$(since "$begin")
		until echo x | runnel produce many >/dev/null 2>&1; do :; done
		served=$(since "$begin")
		verdict "serves in under 3 s after kill -9, run $run" "$served < 3000" "ready after $ready ms, a record acknowledged after $served ms"
	done
	stop
	begin=$(now)
	launch runnel topics list
	until echo x | runnel produce many >/dev/null 2>&1; do :; done
	clean=$(since "$begin")
	row "the same after a stop in good order" "$clean ms"
}

# idle: TOPICS=10 topics of PARTITIONS=10000 partitions that nobody writes to. SETTLE=150
# seconds pass before memory is read: an idle process collects garbage each 2 minutes. The
# processor is that of 60 seconds: what a server looks after, it does each 30.
# TOUCHED=1 writes to every partition first.
idle() {
	local topics=${TOPICS:-10} partitions=${PARTITIONS:-10000} settle=${SETTLE:-150} begin created i used how
	start
	begin=$(now)
	for i in $(seq "$topics"); do create "idle-$i" "$partitions"; done
	created=$(since "$begin")
	if [ -n "${TOUCHED:-}" ]; then
		local targets=()
		for i in $(seq "$topics"); do targets+=(-target "idle-$i:$partitions:0.01"); done
		"$work/load" -bootstrap "$address" -record-size 1 -seconds $((partitions / 1000 + 3)) "${targets[@]}" >/dev/null
	fi
	table "idle: $topics x $partitions partitions${TOUCHED:+, each written to once}"
	row "creating them" "$created ms"
	pause "$settle"
	begin=$(ticks)
	pause 60
	used=$(awk "BEGIN {print ($(ticks) - $begin) / $(getconf CLK_TCK) / 60 * 100}")
	verdict "memory (RSS) under 200 MiB" "$(memory) < 200" "$(memory) MiB"
	verdict "processor under 2 % of a core" "$used < 2" "$used %"
	row "partitions that were written to and have fallen asleep" "$(curl -s "http://$address/metrics" | awk '$1 == "runnel_storage_partitions_asleep" {printf "%d", $2}')"
	for how in -9 -TERM; do
		stop "$how"
		begin=$(now)
		launch runnel topics list
		row "serving again after kill $how" "$(since "$begin") ms"
		until runnel topics describe idle-1 >/dev/null 2>&1; do :; done
		row "and all partitions of a topic described" "$(since "$begin") ms"
	done
	pause "$settle"
	row "memory (RSS) after that" "$(memory) MiB"
}

case $scenario in
space | stalls | catchup | restart | idle) "$scenario" ;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
exit $missed
