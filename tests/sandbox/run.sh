# Runs in namespaces of its own: sh run.sh DIR HANDOFF HOME. DIR has a line of shell in each of the files 0.line, 1.line, ...; what it
# says goes to N.said, and its exit code to N.code. Of one that goes on in the background, what it says until it serves.
dir=$1
set -e
hostname example
mount -t tmpfs tmpfs /run
# Kept through the mounts that follow, which may hide where it is now.
touch /run/handoff && mount --bind "$2" /run/handoff
mkdir /run/home && cp -R "$3/." /run/home
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /home
mkdir -p /home/me/bin /run/kv
mv /run/home/bin/* /home/me/bin
chmod +x /home/me/bin/*
for name in bin/handoff handoff-next; do
    touch /home/me/$name && mount --bind /run/handoff /home/me/$name
done
ln -s handoff /home/me/bin/handoff-supervisor
cd /home/me
# A release may be named by its path or be looked up.
for release in kvd-v2 kvd-v3; do
    cp bin/$release $release
done
# Who is root only here may give a file to no group but his own, so that is every group.
if ! chgrp adm /run/home 2>/dev/null; then
    sed 's/^\([^:]*:[^:]*\):[0-9]*:/\1:0:/' /etc/group >/run/group && mount --bind /run/group /etc/group
fi
ip link set lo up
export HOME=/home/me PATH="/home/me/bin:$PATH"
set +e

# Waits until what was started in the background serves, or until that cannot be any more.
settle() {
    control=${HANDOFF_CONTROL:-/run/kv/control}
    case $1 in
        *'--serve '*)
            until handoff hold-fds --from /run/kv/holder --list >/dev/null 2>&1; do sleep 0.02; done
            return
            ;;
        *'--bake'*) wanted=on-trial ;;
        *) wanted=serving ;;
    esac
    deadline=$(($(date +%s) + 30))
    while [ "$(date +%s)" -lt $deadline ]; do
        for path in "$control" data/control; do
            handoff status --control "$path" --json 2>/dev/null | grep -q "\"phase\":\"$wanted\"" && return
        done
        sleep 0.02
    done
    echo "nobody is $wanted"
}

# Prints which generation of the record is the daemon's that answers.
generation() {
    for path in "${HANDOFF_CONTROL:-/run/kv/control}" data/control; do
        handoff status --control "$path" --json 2>/dev/null | sed -n 's/.*"generation":\([0-9]*\).*/\1/p'
    done
}

# Runs a line ($1) that becomes a daemon, and waits until that serves.
becomes() {
    before=$(generation)
    eval "$1" &
    await_another "$before"
}

# Waits until a daemon serves that has not this generation ($1), or until what was started last has ended.
await_another() {
    deadline=$(($(date +%s) + 30))
    while [ "$(date +%s)" -lt $deadline ]; do
        kill -0 $! 2>/dev/null || { wait $!; return; }
        case $(generation) in
            "$1" | '') sleep 0.02 ;;
            *) return 0 ;;
        esac
    done
    echo "nothing has become a daemon"
    return 1
}

# Runs a line ($1) that lets a successor bake, and ends the trial.
bakes() {
    eval "$1" &
    settle "$1"
    handoff commit && wait $!
}

# Runs a line ($1) that goes on for ever, until it says something.
follows() {
    eval "$1" >followed 2>&1 &
    deadline=$(($(date +%s) + 30))
    until [ -s followed ] || [ "$(date +%s)" -ge $deadline ]; do
        sleep 0.02
    done
    kill $!
    [ -s followed ]
}

n=0
while [ -e "$dir/$n.line" ]; do
    line=$(cat "$dir/$n.line")
    case $line in
        *exec-successor*'&') generation=$(generation) ;;
    esac
    eval "$line" >"$dir/$n.all" 2>&1 </dev/null
    code=$?
    case $line in
        *exec-successor*'&') await_another "$generation" >>"$dir/$n.all" ;;
        *'&') settle "$line" >>"$dir/$n.all" ;;
    esac
    cp "$dir/$n.all" "$dir/$n.said"
    echo $code >"$dir/$n.code"
    n=$((n + 1))
done
