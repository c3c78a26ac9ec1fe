#!/usr/bin/env bash
# What consumer groups cost and how fast they move: each scenario starts a fresh server,
# prints a small table and a verdict for each aim, and ends with 1 where one was missed.
#
#   deploy/bench/groups.sh rebalance|commits|join|idle|takeover
#
# The server is "runnel up", one process with all services. takeover takes the cluster
# of deploy/cluster, and so do the others with CLUSTER=1, with its first coordinator
# alone; the ports of that cluster must then be free.
#
# Sizes are set by environment variables, named below with their defaults; small ones
# check the script and say nothing about the aims. DIR is where the data goes (default:
# a directory of TMPDIR).
set -euo pipefail
cd "$(dirname "$0")/../.."
scenario=${1:-}
work=$(mktemp -d ${DIR:+-p "$DIR"})
cluster=${CLUSTER:-}
[ "$scenario" != takeover ] || cluster=1
server=
holder=
missed=0
finish() {
	for process in $holder $server; do
		kill "$process" 2>/dev/null || true
		wait "$process" 2>/dev/null || true
	done
	if [ -n "$cluster" ]; then deploy/cluster/cluster.sh down >/dev/null 2>&1 || true; fi
	rm -rf "$work"
}
trap finish EXIT

runnel() { "$work/runnel" --bootstrap "$bootstrap" "$@"; }
load() { # scenario, flags: what was measured goes to $work/figures
	local name=$1
	shift
	"$work/groupload" -bootstrap "$bootstrap" "$@" "$name" >>"$work/figures"
}
is() { awk "BEGIN {exit !($1)}"; }
values() { awk -v name="$1" '$1 == name {print $2}' "$work/figures"; }
# spread prints the median of the numbers on stdin and their extremes.
spread() { sort -g | awk '{v[NR]=$1} END {printf "%.4g (%.4g to %.4g)", v[int((NR+1)/2)], v[1], v[NR]}'; }
median() { sort -g | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }
most() { sort -g | tail -1; }
table() { printf '\n| %s | figure | |\n|---|---|---|\n' "$1"; }
row() { echo "| $1 | $2 | |"; }
verdict() { # what, condition for awk, figure
	if is "$2"; then
		echo "| $1 | $3 | met |"
	else
		echo "| $1 | $3 | MISSED |"
		missed=1
	fi
}
# pause waits without a process that takes processor time.
pause() { read -rt "$1" <> <(:) || true; }
memory() { awk '/^VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/$server/status"; }
ticks() { awk '{print $14 + $15}' "/proc/$server/stat"; }

# start starts a server, or the processes of the cluster that are named, with a topic of
# so many partitions, on which a group has been used.
start() { # title, partitions, processes
	local title=$1 partitions=$2
	shift 2
	go build -trimpath -o "$work/groupload" ./deploy/bench/groupload
	if [ -n "$cluster" ]; then
		export RUNNEL_CLUSTER_DIR=$work/cluster
		deploy/cluster/cluster.sh up "$@" >"$work/up" 2>&1 || { cat "$work/up" >&2; exit 1; }
		ln -s cluster/bin/runnel "$work/runnel"
		bootstrap=127.0.0.1:7411,127.0.0.1:7412
	else
		go build -trimpath -o "$work/runnel" ./services/runnel
		bootstrap=127.0.0.1:$((20000 + RANDOM % 20000))
		"$work/runnel" up --data-dir "$work/data" --listen "$bootstrap" >"$work/log" 2>&1 &
		server=$!
		until runnel topics list >/dev/null 2>&1; do
			kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
		done
	fi
	runnel topics create read --partitions "$partitions" >/dev/null
	until runnel topics describe read --unhealthy >/dev/null 2>&1; do pause 0.2; done
	runnel produce read >/dev/null 2>&1 <<<"a record"
	runnel consume read --group before --from-beginning --exit-at-end >/dev/null 2>&1
	until runnel topics describe __consumer_offsets --unhealthy >/dev/null 2>&1; do pause 0.2; done
	table "$title"
}
# one are the processes of a cluster with one coordinator.
readonly one=(etcd metadata-1 metadata-2 storage-1 storage-2 storage-3 coordinator-1)
# coordinating names what was measured.
coordinating() { if [ -n "$cluster" ]; then echo "one coordinator, offsets on three storage nodes"; else echo "one process"; fi; }
pid() { head -1 "$work/cluster/$1.pid"; }

# rebalance: MEMBERS=100 members of a group, each with a connection of its own, over
# PARTITIONS=1000 partitions, RUNS=5 times: all but one join at once, and then the last.
# A member confirms what it is told at once. The time is from the call of the last Join
# until the coordinator has answered the last confirmation of an even share.
rebalance() {
	local members=${MEMBERS:-100}
	start "rebalance: $members members, ${PARTITIONS:-1000} partitions, ${RUNS:-5} runs, $(coordinating)" "${PARTITIONS:-1000}" "${one[@]}"
	load rebalance -topic read -members "$members" -connections "$members" -runs "${RUNS:-5}"
	row "assignments sent in a run" "$(values assignments | spread)"
	verdict "$((members - 1)) members join at once: settled in 2 s, longest" "$(values together_ms | most) < 2000" "$(values together_ms | spread) ms"
	verdict "one more joins: settled in 2 s, longest" "$(values one_more_ms | most) < 2000" "$(values one_more_ms | spread) ms"
}

# commits: RATE=5000 commits per second of one partition each, as an open loop, by the
# members of GROUPS_OF_ONE=200 groups over CONNECTIONS=200 connections, with PARTITIONS=10
# partitions each; for SECONDS_EACH=60, after WARM_UP=5 that are not counted. A commit counts
# from when it was due. They go over one stream per connection, with UNARY=1 each is a call.
commits() {
	local groups=${GROUPS_OF_ONE:-200}
	local partition records=$(((${SECONDS_EACH:-60} + ${WARM_UP:-5} + 1) * ${RATE:-5000} / groups + 1))
	start "commits: ${RATE:-5000} per second, $groups groups, ${SECONDS_EACH:-60} s, $(coordinating)" "${PARTITIONS:-10}" "${one[@]}"
	# What is committed has to be there.
	for ((partition = 0; partition < ${PARTITIONS:-10}; partition++)); do
		seq "$records" | runnel produce read --partition "$partition" >/dev/null 2>&1
	done
	load commits -topic read -groups "$groups" -connections "${CONNECTIONS:-$groups}" -rate "${RATE:-5000}" -seconds "${SECONDS_EACH:-60}" -warm-up "${WARM_UP:-5}s" ${UNARY:+-unary}
	row "answered per second" "$(values commits_per_s)"
	row "p50" "$(values commit_p50_ms) ms"
	verdict "p99 under 20 ms" "$(values commit_p99_ms) < 20" "$(values commit_p99_ms) ms"
	row "p99 of the seconds: median and worst" "$(values second_p99_p50_ms) and $(values second_p99_max_ms) ms"
	row "longest" "$(values commit_max_ms) ms"
	row "begun late by the load itself, p99" "$(values late_p99_ms) ms"
	verdict "no failures" "$(values failures) + $(values heartbeat_failures) == 0" "$(values failures) and $(values heartbeat_failures) heartbeats"
	sed -n 's/^# //p' "$work/figures" >&2
}

# join: a consumer of the SDK subscribes, the first of its group, and polls until it has
# a record; RUNS=20 times with a new client, and as often with one that has its
# connections.
join() {
	start "join to the first record, ${RUNS:-20} runs, $(coordinating)" 1 "${one[@]}"
	load join -topic read -runs "${RUNS:-20}"
	row "new client: assigned" "$(values new_assigned_ms | spread) ms"
	verdict "new client: first record in 100 ms, median" "$(values new_read_ms | median) < 100" "$(values new_read_ms | spread) ms"
	row "known client: assigned" "$(values warm_assigned_ms | spread) ms"
	verdict "known client: first record in 100 ms, median" "$(values warm_read_ms | median) < 100" "$(values warm_read_ms | spread) ms"
}

# idle: GROUPS_OF_ONE=10000 groups with one member and one committed offset each, over
# CONNECTIONS=10 connections; memory and the processor time of 20 s, after SETTLE=30,
# beside those of the same process before.
idle() {
	local groups=${GROUPS_OF_ONE:-10000} settle=${SETTLE:-30} before after used begin
	start "idle: $groups groups of one member, $(coordinating)" 1 "${one[@]}"
	[ -z "$cluster" ] || server=$(pid coordinator-1)
	pause 5
	before=$(memory)
	row "memory (RSS) before" "$before MiB"
	"$work/groupload" -bootstrap "$bootstrap" -topic read -groups "$groups" -connections "${CONNECTIONS:-10}" -ready "$work/ready" idle >"$work/figures" &
	holder=$!
	until [ -e "$work/ready" ]; do
		kill -0 "$holder" 2>/dev/null || exit 1
		pause 0.2
	done
	row "memory (RSS) when all have joined" "$(memory) MiB"
	pause "$settle"
	begin=$(ticks)
	pause 20
	used=$(awk "BEGIN {print ($(ticks) - $begin) / $(getconf CLK_TCK) / 20 * 100}")
	after=$(memory)
	verdict "memory (RSS) that came on top under 400 MiB" "$after - $before < 400" "$(awk "BEGIN {print $after - $before}") MiB, to $after"
	row "processor" "$used % of a core"
	kill "$holder" 2>/dev/null || true
	wait "$holder" || true
	holder=
	[ -z "$cluster" ] || server=
	row "joining took" "$(values joined_ms) ms"
	row "heartbeats per second" "$(values heartbeats_per_s)"
	verdict "no failures" "$(values failures) == 0" "$(values failures)"
}

# takeover: GROUPS_OF_ONE=100 groups with offsets in PARTITIONS=1000 partitions each, all
# of them on the first of two coordinators; its process is killed. The time is from when
# the cluster first says that the other has one of its partitions until that has told all
# offsets of the first group, and of all groups.
takeover() {
	local groups=${GROUPS_OF_ONE:-100} partitions=${PARTITIONS:-1000}
	start "takeover of $((groups * partitions)) offsets in $groups groups, offsets on three storage nodes" "$partitions"
	load takeover -topic read -groups "$groups" -connections 4 -victim "$(sed -n 's/^--node-id=//p' deploy/cluster/coordinator-1.flags)" -pid "$(pid coordinator-1)"
	row "offsets committed in" "$(values committed_ms) ms"
	row "kill -9 until the other has the first partition, and all" "$(values given_ms) and $(values all_given_ms) ms"
	verdict "from then on, the first group served in 5 s" "$(values first_served_ms) < 5000" "$(values first_served_ms) ms"
	verdict "from then on, all groups served in 5 s" "$(values all_served_ms) < 5000" "$(values all_served_ms) ms"
}

case $scenario in
rebalance | commits | join | idle | takeover) "$scenario" ;;
*)
	sed -n '2,/^# a directory/s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
exit $missed
