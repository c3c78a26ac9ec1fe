#!/usr/bin/env bash
# A cluster on this machine, on loopback: 3 storage nodes, 2 coordinator nodes, 2
# metadata nodes and an etcd, each a process of its own with the sample configuration
# beside this script.
#
#   deploy/cluster/cluster.sh up [PROCESS...]|down|status
#
# up builds what it starts, starts what does not run of all processes or of those that
# are named, such as storage-2, and waits until they are ready; so it is also how a node
# that was killed comes back. It starts nothing if an address is taken. down stops the
# processes in good order and keeps their data. status prints them, and ends with 1
# unless all are ready.
#
# Data, logs and pids lie in RUNNEL_CLUSTER_DIR (default: runnel-data/cluster in the
# checkout); the addresses are in the .flags files and in etcd.yaml. A process counts as ours only if its pid and its start time are those that
# were written down when it was started: nothing else is ever signalled.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${RUNNEL_CLUSTER_DIR:-$root/runnel-data/cluster}
readonly here root
readonly storage=(storage-1 storage-2 storage-3)
readonly metadata=(metadata-1 metadata-2)
readonly coordinators=(coordinator-1 coordinator-2)
readonly all=(etcd "${metadata[@]}" "${storage[@]}" "${coordinators[@]}")
# Seconds that up waits for all to be ready, and down for one to end.
readonly patience=60
# Where in its log a process of this run begins, by its name.
declare -A begin=()

fail() {
	echo "cluster: $*" >&2
	exit 1
}

# option prints the value of a line of a node's configuration.
option() { # name, key
	if [ "$1" = etcd ]; then
		sed -n "s|^$2: *\(http://\)\{0,1\}||p" "$here/etcd.yaml"
	else
		sed -n "s|^--$2=||p" "$here/$1.flags"
	fi
}

# address prints where a process serves its clients.
address() { # name
	if [ "$1" = etcd ]; then option etcd listen-client-urls; else option "$1" listen; fi
}

# addresses prints all that a process listens on.
addresses() { # name
	if [ "$1" = etcd ]; then
		option etcd listen-client-urls
		option etcd listen-peer-urls
	else
		option "$1" listen
		option "$1" peer-listen
	fi
}

# taken reports whether somebody listens on an address.
taken() { # address
	local host port
	IFS=: read -r host port <<<"$1"
	(exec 3<>"/dev/tcp/$host/$port") 2>/dev/null
}

# birth prints when a process was started, nothing if there is none.
birth() { # pid
	local state
	state=$(LC_ALL=C ps -o stat= -p "$1" 2>/dev/null) || return 0
	case $state in
	Z* | "") ;; # It has ended, and nobody has asked how.
	*) LC_ALL=C ps -o lstart= -p "$1" 2>/dev/null || true ;;
	esac
}

# running prints the pid of a process of ours, and fails if it does not run.
running() { # name
	local pid born
	[ -r "$dir/$1.pid" ] || return 1
	{ read -r pid && read -r born; } <"$dir/$1.pid" || return 1
	[ -n "$born" ] && [ "$(birth "$pid" | xargs)" = "$born" ] || return 1
	echo "$pid"
}

# ready asks a process whether it serves.
ready() { # name
	local host port path=/readyz
	IFS=: read -r host port <<<"$(address "$1")"
	[ "$1" = etcd ] && path=/health
	(
		exec 3<>"/dev/tcp/$host/$port"
		printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$host" >&3
		read -r -t 2 answer <&3
		[[ $answer == HTTP/*" 200 "* ]]
	) 2>/dev/null
}

# launch starts a process in the directory of the cluster.
launch() { # name
	local name=$1 command
	if [ "$name" = etcd ]; then
		command=("$dir/bin/etcd" --config-file "$here/etcd.yaml")
	else
		command=("$dir/bin/runnel" "${name%-*}")
		while read -r argument; do
			case $argument in --*) command+=("$argument") ;; esac
		done <"$here/$name.flags"
	fi
	begin[$name]=$(($(wc -c 2>/dev/null <"$dir/$name.log" || echo 0) + 1))
	# In a process group of its own, so that Ctrl-C here does not reach it.
	set -m
	(cd "$dir" && exec nohup "${command[@]}") >>"$dir/$name.log" 2>&1 </dev/null &
	set +m
	printf '%s\n%s\n' "$!" "$(birth "$!" | xargs)" >"$dir/$name.pid"
}

# await returns once processes are ready.
await() { # names
	local deadline=$((SECONDS + patience)) name
	for name in "$@"; do
		while true; do
			# First of all: another process may answer on its port.
			running "$name" >/dev/null || {
				tail -c "+${begin[$name]:-1}" "$dir/$name.log" | tail -n 5 >&2
				fail "$name has stopped; its log is $dir/$name.log. What else was started runs on: mend it and come again, or stop all with \"go tool task cluster:down\""
			}
			if ready "$name"; then break; fi
			[ "$SECONDS" -lt "$deadline" ] || fail "$name is not ready after $patience s; its log is $dir/$name.log"
			sleep 0.1
		done
	done
}

# stop ends processes of ours, and returns once they have.
stop() { # names
	local name pid deadline=$((SECONDS + patience))
	for name in "$@"; do
		if pid=$(running "$name"); then kill -TERM "$pid" 2>/dev/null || true; fi
	done
	for name in "$@"; do
		while pid=$(running "$name"); do
			if [ "$SECONDS" -ge "$deadline" ]; then
				echo "cluster: $name does not stop in $patience s and is killed" >&2
				kill -KILL "$pid" 2>/dev/null || true
			fi
			sleep 0.1
		done
		rm -f "$dir/$name.pid"
	done
}

# status prints the processes, and fails unless all are ready.
status() {
	local name node pid state whole=0
	printf '%-13s %-5s %-8s %-10s %-16s %s\n' PROCESS NODE PID STATE ADDRESS DATA
	for name in "${all[@]}"; do
		state=stopped
		if pid=$(running "$name"); then
			state=starting
			if ready "$name"; then state=ready; fi
		else
			pid=-
		fi
		[ "$state" = ready ] || whole=1
		node=-
		if [ "$name" != etcd ]; then node=$(option "$name" node-id); fi
		printf '%-13s %-5s %-8s %-10s %-16s %s\n' "$name" "$node" "$pid" "$state" "$(address "$name")" "$dir/$(option "$name" data-dir)"
	done
	return "$whole"
}

up() { # names, none for all
	local name known address bootstrap= start=()
	for name in "$@"; do
		known=" ${all[*]} "
		[[ $known == *" $name "* ]] || fail "there is no process $name: they are ${all[*]}"
	done
	[ "$#" -gt 0 ] || set -- "${all[@]}"
	mkdir -p "$dir/bin"
	dir=$(cd "$dir" && pwd)
	echo "building" >&2
	(cd "$root" && go build -trimpath -o "$dir/bin/runnel" ./services/runnel && go build -trimpath -o "$dir/bin/etcd" go.etcd.io/etcd/server/v3)
	for name in "$@"; do
		if running "$name" >/dev/null; then continue; fi
		start+=("$name")
		for address in $(addresses "$name"); do
			! taken "$address" || fail "another program listens on $address, which is for $name, and nothing was started: stop it, or change the addresses in $here"
		done
	done
	for name in "${start[@]}"; do launch "$name"; done
	echo "waiting until all are ready" >&2
	await "$@"
	status || true
	# Metadata nodes first: they know the cluster when no storage node is live.
	for name in "${metadata[@]}" "${storage[@]}"; do bootstrap+=${bootstrap:+,}$(address "$name"); done
	cat <<-END

		Logs: $dir/NAME.log. Stop all with "go tool task cluster:down"; the data stays until you
		remove $dir. Kill one, and "go tool task cluster:up" starts it again, as
		"deploy/cluster/cluster.sh up storage-2" does with that one alone.

		  export RUNNEL_BOOTSTRAP=$bootstrap
		  $dir/bin/runnel cluster describe
		  $dir/bin/runnel topics create orders --partitions 6 --replication-factor 3
		  $dir/bin/runnel topics describe orders
	END
}

down() {
	local name some=
	for name in "${all[@]}"; do
		if running "$name" >/dev/null; then some=1; fi
	done
	if [ -z "$some" ]; then
		echo "nothing runs that was started in $dir (RUNNEL_CLUSTER_DIR names another directory)" >&2
		return 0
	fi
	# Coordinators write what is left to the storage nodes. Both give away what they have
	# through the metadata nodes, and these resign in etcd.
	stop "${coordinators[@]}"
	stop "${storage[@]}"
	stop "${metadata[@]}"
	stop etcd
	echo "stopped; the data stays in $dir" >&2
}

case ${1:-}:$# in
up:*) up "${@:2}" ;;
down:1 | status:1) "$1" ;;
*)
	echo "usage: deploy/cluster/cluster.sh up [PROCESS...]|down|status" >&2
	exit 2
	;;
esac
