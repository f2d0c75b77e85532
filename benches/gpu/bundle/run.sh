#!/usr/bin/env bash
# Tests and times the kernels on this machine's GPU; see README.md beside it. Needs a driver, nothing else;
# what it finds beyond that (compute-sanitizer, ncu, Python with torch) it uses.
#
#   ./run.sh [--quick] [--out DIR] [--backend cuda:INDEX]
#   ./run.sh --no-gpu-selftest [--quick] [--out DIR]
#
# Every part has a time budget and may fail alone. Leaves DIR/results.json and prints a summary.
# Exit code: 0 no part failed, 1 one did, 2 bad arguments.
set -u
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command_line="run.sh $*"
quick=
selftest=
out=
backend=cuda:0

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1 ;;
        --no-gpu-selftest) selftest=1 ;;
        --out) [ $# -ge 2 ] || { echo "error: --out needs a folder" >&2; exit 2; }; out=$2; shift ;;
        --backend) [ $# -ge 2 ] || { echo "error: --backend needs cuda:INDEX" >&2; exit 2; }; backend=$2; shift ;;
        --help | -h) usage; exit 0 ;;
        *) echo "error: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

out=${out:-$PWD/psa-gpu-results}
mkdir -p "$out" && out=$(cd "$out" && pwd) || { echo "error: cannot make the folder $out; name another with --out" >&2; exit 2; }
# Of an earlier run in the same folder.
rm -f "$out"/*.jsonl "$out"/parts.tsv "$out"/environment.tsv "$out"/ncu.csv "$out"/results.json
: > "$out/parts.tsv"
: > "$out/environment.tsv"

gpu=$here/bin/psa-gpu
traces=()
[ -f "$here/data/traces.safetensors" ] && traces=(--traces "$here/data/traces.safetensors")
export PSA_CUBIN_CACHE=$out/cubin
export PYTHONDONTWRITEBYTECODE=1

# The whole run; parts that come too late are left out.
limit=480
[ -n "$quick" ] && limit=120
[ -n "$selftest" ] && limit=900
begun=$(date +%s)
now_ms() { echo $(($(date +%s%N) / 1000000)); }

note() { printf '%s\t%s\n' "$1" "$(printf '%s' "$2" | tr '\t\n' '  ')" >> "$out/environment.tsv"; }
done_part() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(printf '%s' "$4" | tr '\t\n' '  ')" >> "$out/parts.tsv"; }
skip() { echo "==> $1: skipped, $2"; done_part "$1" skipped 0 "$2"; }

# part NAME SECONDS COMMAND ..: runs it within its budget and what is left of the whole; output to NAME.log.
# Where SKIP_CODE is set, that exit code means that something optional is not there.
part() {
    local name=$1 budget=$2 left start code seconds status remark=
    shift 2
    left=$((limit - ($(date +%s) - begun)))
    if [ "$left" -lt 5 ]; then
        skip "$name" "no time left of $limit s"
        return
    fi
    [ "$budget" -gt "$left" ] && budget=$left
    echo "==> $name (at most $budget s)"
    start=$(now_ms)
    timeout -k 5 "$budget" "$@" < /dev/null > "$out/$name.log" 2>&1
    code=$?
    seconds=$(awk "BEGIN { print ($(now_ms) - $start) / 1000 }")
    case $code in
        0) status=passed ;;
        # timeout's own codes; but 137 is also what a part gives that somebody else killed, earlier.
        124 | 137) if [ "$code" = 124 ] || awk "BEGIN { exit !($seconds >= $budget) }"; then
                status=timeout remark="stopped after $budget s, see $name.log"
            else
                status=failed remark="killed from outside (kill -9, out of memory), see $name.log"
            fi ;;
        "${SKIP_CODE:-none}") status=skipped remark=$(tail -n 1 "$out/$name.log") ;;
        *) status=failed remark="exit code $code: $(grep -m1 -E '^(FAILED|error|========= .*(rror|azard))' "$out/$name.log" | cut -c1-200)" ;;
    esac
    echo "    $status in $seconds s${remark:+: $remark}"
    done_part "$name" "$status" "$seconds" "$remark"
}

environment() {
    note date "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    note command "$command_line"
    note commit "$(sed -n 's/.*"commit": *"\([^"]*\)".*/\1/p' "$here/bundle.json" 2> /dev/null || true)"
    note kernel "$(uname -sr)"
    note cpu "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
    note libc "$(getconf GNU_LIBC_VERSION 2> /dev/null || echo unknown)"
    if [ -n "$selftest" ]; then
        note device "emulator (self-test without a GPU)"
    elif command -v nvidia-smi > /dev/null; then
        local index=${backend#cuda}
        index=${index#:}
        local ask=name,driver_version,pci.bus_id,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,persistence_mode,ecc.mode.current
        # A field that this nvidia-smi does not know must not cost the others.
        for field in ${ask//,/ }; do
            value=$(nvidia-smi -i "${index:-0}" --query-gpu="$field" --format=csv,noheader 2> /dev/null | head -n 1) \
                && note "gpu.$field" "$value"
        done
        note device "$(nvidia-smi -i "${index:-0}" --query-gpu=name --format=csv,noheader 2> /dev/null | head -n 1)"
        note gpu.cuda "$(nvidia-smi 2> /dev/null | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/\1/p' | head -n 1)"
        note gpu.others "$(nvidia-smi -i "${index:-0}" --query-compute-apps=pid,name --format=csv,noheader 2> /dev/null | head -n 5)"
    else
        note device "unknown: no nvidia-smi"
    fi
}

# Where NVIDIA's installer puts what is not on the PATH.
tool() {
    command -v "$1" && return
    local found
    for found in /usr/local/cuda/bin/$1 /usr/local/cuda-*/bin/$1 /opt/nvidia/nsight-compute/*/$1; do
        [ -x "$found" ] && { echo "$found"; return; }
    done
    return 1
}

python=$(command -v python3 || true)

# A whole program to check for syntax without running or writing anything.
syntax='import ast, sys
for name in sys.argv[1:]:
    ast.parse(open(name, encoding="utf-8").read(), name)
    print(name, "is Python")'

environment

if [ -n "$selftest" ]; then
    extent=--quick
    [ -n "$quick" ] && extent=--smoke
    part check 600 "$gpu" check --backend emulator $extent "${traces[@]}" --json "$out/check.jsonl"
    part ledger 60 "$gpu" ledger --backend emulator --json "$out/ledger.jsonl"
    part step 60 "$gpu" step --backend emulator --batch 2 --tokens 1024 "${traces[@]}"
    part time 60 "$gpu" time --backend emulator --quick "${traces[@]}" --json "$out/time.jsonl"
    part script 10 bash -n "$here/run.sh"
    if [ -n "$python" ]; then
        part scripts 20 "$python" -c "$syntax" "$here"/peers/*.py
        part peers 60 "$python" "$here/peers/peers.py" --dry-run
    else
        skip scripts "no python3"
        skip peers "no python3"
    fi
else
    if [ -n "$quick" ]; then
        check=25 ledger=8 sanitizer=8 time=36 timing=26 peers=25 ncu=10
    else
        check=90 ledger=15 sanitizer=24 time=130 timing=110 peers=95 ncu=50
    fi
    flag=
    [ -n "$quick" ] && flag=--quick
    if [ -x "$here/bin/psa" ]; then part info 20 "$here/bin/psa" info; else skip info "no bin/psa"; fi
    part check $check "$gpu" check --backend "$backend" $flag "${traces[@]}" --json "$out/check.jsonl"
    part ledger $ledger "$gpu" ledger --backend "$backend" --json "$out/ledger.jsonl"
    if sanitizer_tool=$(tool compute-sanitizer); then
        for kind in memcheck racecheck initcheck synccheck; do
            part $kind $sanitizer "$sanitizer_tool" --tool $kind --error-exitcode 1 \
                "$gpu" check --smoke --backend "$backend"
        done
    else
        for kind in memcheck racecheck initcheck synccheck; do skip $kind "no compute-sanitizer"; done
    fi
    part time $time "$gpu" time --backend "$backend" $flag --budget $timing "${traces[@]}" --json "$out/time.jsonl"
    if [ -n "$python" ]; then
        index=${backend#cuda}
        index=${index#:}
        SKIP_CODE=2 CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-${index:-0}} part peers $peers \
            "$python" "$here/peers/peers.py" $flag --budget $((peers - 15)) --json "$out/peers.jsonl"
    else
        skip peers "no python3"
    fi
    if ncu_tool=$(tool ncu); then
        metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
        metrics=$metrics,dram__throughput.avg.pct_of_peak_sustained_elapsed
        metrics=$metrics,sm__throughput.avg.pct_of_peak_sustained_elapsed
        metrics=$metrics,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
        part ncu $ncu "$ncu_tool" --csv --log-file "$out/ncu.csv" --metrics $metrics \
            -k 'regex:^(score|plan|attend|merge)' "$gpu" step --backend "$backend" "${traces[@]}"
        # Counters are often closed to users: that says nothing about the kernels.
        if grep -q ERR_NVGPUCTRPERM "$out/ncu.log" "$out/ncu.csv" 2> /dev/null; then
            sed -i 's/^ncu\tfailed\t\([^\t]*\)\t.*/ncu\tskipped\t\1\tthe GPU counters are closed to this user/' "$out/parts.tsv"
        fi
    else
        skip ncu "no ncu"
    fi
fi

echo
"$gpu" collect "$out" --out "$out/results.json" | tee "$out/summary.txt"
code=${PIPESTATUS[0]}
echo
echo "results: $out/results.json ($(($(date +%s) - begun)) s)"
exit "$code"
