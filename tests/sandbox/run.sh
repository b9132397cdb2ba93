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
cd /home/me
# A release may be named by its path or be looked up.
for release in kvd-v2 kvd-v3; do
    cp bin/$release $release
done
ip link set lo up
export HOME=/home/me PATH="/home/me/bin:$PATH"
set +e

# Waits until what was started in the background serves, or until that cannot be any more.
settle() {
    control=${HANDOFF_CONTROL:-/run/kv/control}
    case $1 in
        *'--bake'*) wanted=on-trial ;;
        *) wanted=serving ;;
    esac
    tries=0
    while [ $tries -lt 1000 ]; do
        for path in "$control" data/control; do
            handoff status --control "$path" --json 2>/dev/null | grep -q "\"phase\":\"$wanted\"" && return
        done
        sleep 0.02
        tries=$((tries + 1))
    done
    echo "nobody serves"
}

n=0
while [ -e "$dir/$n.line" ]; do
    line=$(cat "$dir/$n.line")
    eval "$line" >"$dir/$n.all" 2>&1 </dev/null
    code=$?
    case $line in
        *'&') settle "$line" >>"$dir/$n.all" ;;
    esac
    cp "$dir/$n.all" "$dir/$n.said"
    echo $code >"$dir/$n.code"
    n=$((n + 1))
done
