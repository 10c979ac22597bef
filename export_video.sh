#!/usr/bin/env bash
# Everything the AX650 needs, from a Qwen2.5-VL checkpoint and videos, in one command.
#
#   bash export_video.sh [CKPT [VIDEO...]] [--demo] [--host-only] [--dry-run] [--resume|--force]
#
#   CKPT         directory of the checkpoint
#   VIDEO...     video files, directories of frames, or pictures: the first is tested with, all calibrate
#                (default: the demo clip of assets/, whose ranges fit no real scene)
#   --demo       the demo model and clip of assets/; needs no checkpoint
#   --host-only  no NPU build is wanted: the host steps only
#   --dry-run    print the commands, run nothing
#   --resume     skip what an earlier run finished from the same inputs
#   --force      redo everything
#
# PULSAR2 names the NPU compiler: a command, or docker:IMAGE. Without it the host steps all run, and the build
# commands are printed and written to WORKDIR/pulsar2_commands.sh.
#
# Variables (defaults):
#   WORKDIR (the current directory)   OUT (CKPT-AX650)   VENV (.venv beside this script)   PYTHON (python3)
#   SIZE ("H W"; from the video)   NUM_FRAMES (8)   FPS   NUM_SAMPLES (32, for calibration)   GENERATE (0; 1
#   compares text, too)   CHIP (AX650)   PULSAR2
#   IMAGE_SIZE ("H W": a second vision model, for pictures, in the same package; captured and calibrated with the
#   pictures among the inputs, or else with the videos' frames; what it needs lies in WORKDIR/pictures)
#   the graph:  WINDOW_MODE (grouped, folded, unrolled or dense; the probe finds out which)   INPUT (pixels)   OPSET (17)
#   vision build:  CONFIG (config_video.json)   PROBE (1; 0 leaves the first build of two blocks out)   BUILD_FLAGS
#   language build:  PREFILL_LEN (512)   KV_CACHE_LEN (1023)   LAST_KV_CACHE_LEN ("128 256 ..."; chunked: prefill in
#   chunks of 128, as many as the cache holds)   WEIGHT_TYPE   POST_WEIGHT_TYPE   LLM_BUILD2 (0)   PARALLEL (32)
#   LLM_BUILD_FLAGS; BUILD_FLAGS and LLM_BUILD_FLAGS are words for `pulsar2 build` and `pulsar2 llm_build` as they are
#   QUANTIZE (vendor: every activation at 16 bits; mixed: WORKDIR/config_video_mixed.json, which
#   preview_quantization.py --search writes)
set -euo pipefail
# A stream that is closed would lend its number to the next file that is opened.
{ : 3>&2; } || exec 2> /dev/null
{ : 3>&1; } 2> /dev/null || exec > /dev/null
{ : 3<&0; } 2> /dev/null || exec < /dev/null
unset CDPATH # a `cd` would print, and might lead elsewhere

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# ---- arguments

fail() { printf 'error: %s\n' "${*//[[:cntrl:]]/?}" >&2; exit 2; }
out() { printf "$@" 2> /dev/null || fail "standard output cannot be written"; }
say() { [ "$LATER" = 1 ] || out '\n== %s\n' "${*//[[:cntrl:]]/?}"; }
# A path as an argument: never mistaken for a flag.
safe() { case $1 in -*) printf './%s' "$1" ;; *) printf '%s' "$1" ;; esac; }

DEMO=0 HOST_ONLY=0 DRY_RUN=0 MODE=run PATHS=() LATER=0
while [ $# -gt 0 ]; do
    case $1 in
        --demo) DEMO=1 ;;
        --host-only) HOST_ONLY=1 ;;
        --dry-run) DRY_RUN=1 ;;
        --resume | --force)
            [ "$MODE" = run ] || fail "--resume and --force exclude each other"
            MODE=${1#--} ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --) shift; while [ $# -gt 0 ]; do PATHS+=("$(safe "$1")"); shift; done; break ;;
        --*) fail "unknown option $1 (--help lists them)" ;;
        *) PATHS+=("$(safe "$1")") ;;
    esac
    shift
done

WORKDIR=$(safe "${WORKDIR:-$PWD}")
if [ "$DEMO" = 1 ]; then
    [ ${#PATHS[@]} = 0 ] || fail "--demo brings its own checkpoint and clip; leave out ${PATHS[0]}"
    PATHS=("$ROOT/assets/demo_model")
    OUT=${OUT:-$WORKDIR/demo_model-AX650}
    export SIZE=${SIZE:-168 168} NUM_FRAMES=${NUM_FRAMES:-8} GENERATE=${GENERATE:-1}
fi
[ ${#PATHS[@]} -gt 0 ] || fail "expected a checkpoint directory, or --demo (--help explains)"
CKPT=${PATHS[0]}
[ -n "$CKPT" ] || fail "the checkpoint's path is empty"
[ "$CKPT" = / ] || CKPT=${CKPT%/}
VIDEOS=("${PATHS[@]:1}")
[ -f "$CKPT/config.json" ] || fail "$CKPT: expected a directory with a Qwen2.5-VL checkpoint, found none"
if [ ${#VIDEOS[@]} = 0 ]; then
    VIDEOS=("$ROOT/assets/demo.mp4")
    [ "$DEMO" = 1 ] || printf 'note: no video given: %s is captured and calibrates, for a trial only\n' "${VIDEOS[0]}" >&2
fi
OUT=$(safe "${OUT:-$CKPT-AX650}")
if [ "${QUANTIZE:-}" != mixed ]; then
    DEFAULT=$ROOT/config_video.json
    [ "${INPUT:-}" != normalized ] || DEFAULT=$ROOT/config_video_normalized.json
    CONFIG=${CONFIG:-$DEFAULT}
elif [ -z "${CONFIG:-}" ]; then
    CONFIG=$WORKDIR/config_video_mixed.json
    [ -f "$CONFIG" ] || fail "QUANTIZE=mixed: $CONFIG is missing: run this once with --host-only, then" \
        "preview_quantization.py $CKPT --workdir $WORKDIR --search --evaluate CLIP (one that is not calibrated on)"
fi
CONFIG=$(safe "$CONFIG")
NAME=$(basename -- "$(cd -- "$CKPT" && pwd -P)")

# ---- the environment, the variables, the compiler

VENV=$(safe "${VENV:-$ROOT/.venv}")
[ ! -e "$VENV" ] || [ -d "$VENV" ] || fail "VENV=$VENV: expected a directory, or nothing yet"
PY=$VENV/bin/python
OURS=("$PY" -P -m) # -P: whatever lies in the current directory is no module of ours
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

CHILD=""
run() { # runs a command that SIGTERM and Ctrl-C reach; in a dry run, prints it
    if [ "$DRY_RUN" = 1 ]; then out '%s\n' "$(printf '%q ' "$@")"; return; fi
    "$@" <&0 &
    CHILD=$!
    local code=0
    wait "$CHILD" || code=$?
    CHILD=""
    return "$code"
}
stopped() { # a signal came: the child cleans up, then this ends, too
    trap '' INT TERM HUP
    [ -z "$CHILD" ] || { kill -TERM "$CHILD" 2> /dev/null || true; wait "$CHILD" || true; }
    exit "$1"
}
trap 'stopped 130' INT
trap 'stopped 143' TERM HUP

PYTHON=$(safe "${PYTHON:-python3}")
if [ ! -x "$PY" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "PYTHON=$PYTHON: expected Python 3.11 or later"
    say "environment: $VENV"
    run "$PYTHON" -P -m venv "$VENV"
fi
if [ "$DRY_RUN" = 1 ] || ! "$PY" "$ROOT/qwen_vl_axera/chain/requirements.py" "$ROOT/requirements.txt" 2> /dev/null; then
    run "${OURS[@]}" pip install --quiet -r "$ROOT/requirements.txt"
fi
CHAIN=("${OURS[@]}" qwen_vl_axera.chain)
[ -x "$PY" ] || CHAIN[0]=$PYTHON # a dry run before the environment exists
PLACE=(--workdir "$WORKDIR" --out "$OUT" --config "$CONFIG")

NPU_BUILD=0 COMPILER="" CHECK=() COMPLETE=() WHY="--host-only"
if [ "$HOST_ONLY" = 0 ]; then
    WHY="no pulsar2 on PATH, and PULSAR2 is not set"
    if [ -n "${PULSAR2:-}" ] || command -v pulsar2 > /dev/null; then
        NPU_BUILD=1 COMPLETE=(--require-complete)
        # Asked now: a compiler that is not there must not be noticed after everything else.
        CHECK=(--ask)
    fi
fi
if [ "$DRY_RUN" = 1 ]; then CHECK=(); else CHECK+=(--make); fi
COMPILER=$("${CHAIN[@]}" check "$CKPT" "${VIDEOS[@]}" "${PLACE[@]}" "${CHECK[@]}")
[ -z "$COMPILER" ] || out 'NPU compiler: %s\n' "$COMPILER"

flags() { # flags ARRAY [VARIABLE --FLAG]...: the flags of those variables that are set
    local -n array=$1
    shift
    array=()
    while [ $# -gt 0 ]; do
        # shellcheck disable=SC2206  # SIZE is two words, split on purpose
        [ -z "${!1:-}" ] || array+=("$2" ${!1})
        shift 2
    done
}
flags CLIP_FLAGS NUM_FRAMES --num-frames FPS --fps SIZE --size
flags IMAGE_FLAGS IMAGE_SIZE --size
flags CALIB_FLAGS NUM_SAMPLES --num-samples
[ "${INPUT:-}" != normalized ] || CALIB_FLAGS+=(--format image) # as its configuration has it
flags CHIP_FLAGS CHIP --chip
flags FORM_FLAGS INPUT --input OPSET --opset
flags PROBE_FLAGS WINDOW_MODE --window-mode OPSET --opset
flags LLM_FLAGS WEIGHT_TYPE --weight-type POST_WEIGHT_TYPE --post-weight-type PARALLEL --parallel
[ "${LLM_BUILD2:-0}" = 0 ] || LLM_FLAGS+=(--llm-build2)
words() { mapfile -d '' "$1" < <("${CHAIN[@]}" "${@:2}"); } # words ARRAY TASK...: what it prints
words LENGTHS flags lengths
words BUILD_EXTRA flags BUILD_FLAGS
words LLM_EXTRA flags LLM_BUILD_FLAGS
form() { printf '%s' "${WINDOW_MODE:-$("${CHAIN[@]}" form --workdir "$WORKDIR")}"; }

MODELS=(video) PICTURES=() LEFT=()
if [ -n "${IMAGE_SIZE:-}" ]; then
    MODELS+=(image)
    words PICTURE pictures capture "${VIDEOS[@]}"
    [ ${#PICTURE[@]} -gt 0 ] || exit 2 # said
    words PICTURES pictures calibration "${VIDEOS[@]}"
fi
vision() { # vision video|image: which model the next steps are about
    VISION=$1 HERE=$WORKDIR GRAPH=$WORKDIR/${NAME}_vision OF="" INPUTS=("${VIDEOS[@]}")
    CLIP=(--video "${VIDEOS[0]}" "${CLIP_FLAGS[@]}") SIZES=() TEXT=()
    [ "${GENERATE:-0}" = 0 ] || TEXT=(--generate)
    [ "$VISION" = image ] || return 0
    HERE=$WORKDIR/pictures GRAPH+=_image OF=" (pictures)" INPUTS=("${PICTURES[@]}")
    CLIP=("${PICTURE[@]}" "${IMAGE_FLAGS[@]}") SIZES=("${IMAGE_FLAGS[@]}") TEXT=()
}
step() { # step NAME COMMAND...: runs it, or skips it, or keeps it for later; chain/steps.py knows its files
    local name=$1
    shift
    if [ "$LATER" = 1 ]; then LEFT+=(-- "$@"); return; fi
    if [ "$DRY_RUN" = 1 ]; then run "$@"; return; fi
    run "${CHAIN[@]}" step "$name" "$CKPT" "${INPUTS[@]}" "${PLACE[@]}" --vision "$VISION" \
        --mode "$MODE" "--compiler=$COMPILER" -- "$@"
}
reports() {
    local model
    for model in "${MODELS[@]}"; do
        vision "$model"
        [ "$DRY_RUN" = 0 ] && [ ! -f "$HERE/capture.json" ] ||
            run "$PY" "$ROOT/make_report.py" "$CKPT" --workdir "$HERE"
    done
}

if [ "$DRY_RUN" = 0 ]; then
    # Held until the end, by every child, too: two runs in one work directory would overwrite each other's files.
    exec 9>> "$WORKDIR/.steps/lock"
    flock -n 9 || fail "another run is at work in $WORKDIR: wait for it or end it"
fi
# A failed check is worth a page, too; the exit code stays the step's.
finish() {
    local code=$?
    flock -u 9 # a daemon that some command left behind must not keep it
    [ "$code" != 1 ] || reports >&2 || true
    exit "$code"
}
[ "$DRY_RUN" = 1 ] || trap finish EXIT

# ---- the chain

export_as() { # export_as FORM: of the window attention
    say "2 PyTorch -> ONNX$OF"
    step export "$PY" "$ROOT/export.py" "$CKPT" "$VISION" "--window-mode=$1" "${SIZES[@]}" "${FORM_FLAGS[@]}" \
        --workdir "$WORKDIR"
    say "3 ONNX in the vision tower's place$OF"
    step fidelity "$PY" "$ROOT/test_onnx_video_by_sec.py" "$CKPT" --onnx "$GRAPH.onnx" "${GRAPH}_uint8.onnx" \
        "${TEXT[@]}" --workdir "$HERE"
}
FORM=$(form)
for model in "${MODELS[@]}"; do
    vision "$model"
    say "1 transformers' vision tower, step by step$OF"
    step capture "$PY" "$ROOT/run_video_by_sec.py" "$CKPT" "${CLIP[@]}" --workdir "$HERE"
    export_as "$FORM"
    say "4 calibration set$OF"
    step calibration "$PY" "$ROOT/get_calib.py" --inputs "${INPUTS[@]}" "${CALIB_FLAGS[@]}" --workdir "$HERE"
    say "is everything in place for the compiler?$OF"
    run "$PY" "$ROOT/preflight.py" "$CKPT" --config "$CONFIG" --onnx "$GRAPH.onnx" --out "$OUT" --workdir "$HERE" \
        "${LENGTHS[@]}" "${CHIP_FLAGS[@]}" || {
        code=$? # without the compiler the table is information; with it, a failed check stops here
        [ "$NPU_BUILD" = 0 ] || exit "$code"
    }
done

if [ "${QUANTIZE:-vendor}" = vendor ] && [ -f "$WORKDIR/quantization.json" ]; then
    run "${OURS[@]}" qwen_vl_axera.quantization.advice --workdir "$WORKDIR"
fi

# ---- the compiler's part; without a compiler it is written down

LATER=$((1 - NPU_BUILD))
if [ "${PROBE:-1}" = 1 ]; then
    vision video
    say "two blocks of the tower -> NPU: which form compiles, and computes the same?"
    step npu-probe "$PY" "$ROOT/probe_build.py" "$CKPT" --config "$CONFIG" "${PROBE_FLAGS[@]}" "${CHIP_FLAGS[@]}" \
        --workdir "$WORKDIR"
    FOUND=$(form)
    [ "$LATER" = 0 ] || [ -n "${WINDOW_MODE:-}" ] || FOUND=@form # as the probe will find
    if [ "$FOUND" != "$FORM" ]; then
        for model in "${MODELS[@]}"; do vision "$model" && export_as "$FOUND"; done
    fi
fi
for model in "${MODELS[@]}"; do
    vision "$model"
    AXMODEL=$OUT/$(basename -- "$GRAPH").axmodel
    say "vision graph -> NPU$OF"
    step npu-vision "${OURS[@]}" qwen_vl_axera.compiler build "$GRAPH.onnx" --config "$CONFIG" --workdir "$HERE" \
        "${CHIP_FLAGS[@]}" "${BUILD_EXTRA[@]}" --deliver "$AXMODEL"
    say "compiled model against ONNX$OF"
    step npu-fidelity "${OURS[@]}" qwen_vl_axera.compiled.axmodel "$AXMODEL" "${GRAPH}_uint8.onnx" --config "$CONFIG" \
        --workdir "$HERE"
done
vision video
say "language model -> NPU"
step npu-language "${OURS[@]}" qwen_vl_axera.compiler llm_build "$CKPT" "$OUT" "${LENGTHS[@]}" "${LLM_FLAGS[@]}" \
    "${CHIP_FLAGS[@]}" "${LLM_EXTRA[@]}"
LATER=0

say "5 token embeddings"
step embedding "$PY" "$ROOT/extract_embedding.py" "$CKPT" "$OUT"

say "6 the directory for the board"
PACKAGE=("$PY" "$ROOT/package_model.py" "$CKPT" "$OUT" "${LENGTHS[@]:0:2}" --workdir "$WORKDIR")
run "${PACKAGE[@]}" "${COMPLETE[@]}"

if [ "$NPU_BUILD" = 0 ]; then
    say "NPU build: left to do"
    [ "$DRY_RUN" = 0 ] || LEFT=(--print "${LEFT[@]}")
    "${CHAIN[@]}" left --workdir "$WORKDIR" --form "$FORM" "${LEFT[@]}" \
        -- "${PACKAGE[@]}" --require-complete
fi

say "report"
reports
if [ "$DRY_RUN" = 1 ]; then
    out '\ndry run: nothing was done\n'
elif [ "$NPU_BUILD" = 0 ]; then
    out '\ndone: the host steps; the NPU build is left (%s): run %s\n' "$WHY" "$WORKDIR/pulsar2_commands.sh"
else
    out '\ndone: everything; upload %s\n' "$OUT"
fi
