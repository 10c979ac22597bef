#!/usr/bin/env bash
# Everything the AX650 needs, from a Qwen2.5-VL checkpoint and videos, in one command.
#
#   bash export_video.sh [CKPT [VIDEO...]] [--demo] [--host-only] [--dry-run] [--resume|--force]
#
#   CKPT         directory of the checkpoint
#   VIDEO...     video files, directories of frames, or pictures: the first is tested with, all calibrate
#                (default: the demo clip of assets/)
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
#   compares text, too)   PREFILL_LEN (512)   KV_CACHE_LEN (1023)   PARALLEL (32)   CHIP (AX650)   PULSAR2
set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
say() { printf '\n== %s\n' "$*"; }
# A path as an argument: never mistaken for a flag.
safe() { case $1 in -*) printf './%s' "$1" ;; *) printf '%s' "$1" ;; esac; }

DEMO=0 HOST_ONLY=0 DRY_RUN=0 MODE=run PATHS=()
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
    CKPT=$ROOT/assets/demo_model
    OUT=${OUT:-$WORKDIR/demo_model-AX650}
    SIZE=${SIZE:-168 168} NUM_FRAMES=${NUM_FRAMES:-8} GENERATE=${GENERATE:-1}
else
    [ ${#PATHS[@]} -gt 0 ] || fail "expected a checkpoint directory, or --demo (--help explains)"
    CKPT=${PATHS[0]%/}
    PATHS=("${PATHS[@]:1}")
    OUT=${OUT:-$CKPT-AX650}
fi
[ -d "$CKPT" ] || fail "$CKPT: expected a directory with a Qwen2.5-VL checkpoint, found none"
[ ${#PATHS[@]} -gt 0 ] && VIDEOS=("${PATHS[@]}") || VIDEOS=("$ROOT/assets/demo.mp4")
for video in "${VIDEOS[@]}"; do [ -e "$video" ] || fail "$video: no such file or directory"; done
OUT=$(safe "$OUT")
NAME=$(basename -- "$(cd -- "$CKPT" && pwd -P)")
VENV=${VENV:-$ROOT/.venv}
PY=$VENV/bin/python
HOST_PY=$PY
[ -x "$PY" ] || HOST_PY=${PYTHON:-python3} # a dry run before the environment exists
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
GRAPH=$WORKDIR/${NAME}_vision
CLIP=() SIZE_FLAG=()
[ -z "${NUM_FRAMES:-}" ] || CLIP+=(--num-frames "$NUM_FRAMES")
[ -z "${FPS:-}" ] || CLIP+=(--fps "$FPS")
# shellcheck disable=SC2206  # two numbers, split on purpose
[ -z "${SIZE:-}" ] || SIZE_FLAG=(--size $SIZE)
TEXT=()
[ "${GENERATE:-0}" = 0 ] || TEXT=(--generate)
LLM=(--prefill-len "${PREFILL_LEN:-512}" --kv-cache-len "${KV_CACHE_LEN:-1023}")
NPU=(--chip "${CHIP:-AX650}" --workdir "$WORKDIR")

run() { # prints the command in a dry run
    if [ "$DRY_RUN" = 1 ]; then printf '%q ' "$@"; printf '\n'; else "$@"; fi
}
step() { # step NAME [--input P]... [--output P]... -- COMMAND: runs it, or skips it when it is up to date
    if [ "$DRY_RUN" = 1 ]; then
        while [ "$1" != -- ]; do shift; done
        shift
        run "$@"
    else
        "$PY" -m qwen_vl_axera.chain.steps --lock-fd 9 --workdir "$WORKDIR" --mode "$MODE" --summary "$WORKDIR/steps.json" --name "$@"
    fi
}

if [ ! -x "$PY" ]; then
    say "environment: $VENV"
    run "${PYTHON:-python3}" -m venv "$VENV"
fi
if [ "$DRY_RUN" = 1 ] || ! "$PY" "$ROOT/qwen_vl_axera/chain/requirements.py" "$ROOT/requirements.txt" 2> /dev/null; then
    run "$PY" -m pip install --quiet -r "$ROOT/requirements.txt"
fi
run mkdir -p -- "$WORKDIR/.steps" "$OUT"
# Held until the end: two runs in one work directory would overwrite each other's files.
[ "$DRY_RUN" = 1 ] || exec 9>> "$WORKDIR/.steps/lock"

NPU_BUILD=0 COMPLETE=() COMMANDS=$WORKDIR/pulsar2_commands.sh
if [ "$HOST_ONLY" = 1 ]; then
    WHY="--host-only"
elif [ -n "${PULSAR2:-}" ] || command -v pulsar2 > /dev/null; then
    NPU_BUILD=1 COMPLETE=(--require-complete)
    # Asked now: a compiler that is not there must not be noticed after everything else.
    if [ "$DRY_RUN" = 0 ]; then
        COMPILER=$("$PY" -m qwen_vl_axera.compiler version)
        printf 'NPU compiler: %s\n' "$COMPILER"
    fi
else
    WHY="no pulsar2 on PATH, and PULSAR2 is not set"
fi

# A failed check is worth a page, too; the exit code stays the step's.
failed() {
    code=$?
    if [ "$code" = 1 ] && [ -f "$WORKDIR/capture.json" ]; then
        "$PY" "$ROOT/make_report.py" "$CKPT" --workdir "$WORKDIR" >&2 || true
    fi
    exit "$code"
}
[ "$DRY_RUN" = 1 ] || trap failed EXIT

inputs=()
for video in "${VIDEOS[@]}"; do inputs+=(--input "$video"); done

say "1 transformers' vision tower, step by step"
step capture --checkpoint "$CKPT" --input "${VIDEOS[0]}" --output "$WORKDIR/capture.json" \
    --output "$WORKDIR/pixels.npy" --output "$WORKDIR/vit_out.npy" --output "$WORKDIR/hidden_states.pth" \
    -- "$PY" "$ROOT/run_video_by_sec.py" "$CKPT" --video "${VIDEOS[0]}" \
    ${CLIP[@]+"${CLIP[@]}"} ${SIZE_FLAG[@]+"${SIZE_FLAG[@]}"} --workdir "$WORKDIR"

say "2 PyTorch -> ONNX"
step export --checkpoint "$CKPT" --input "$WORKDIR/capture.json" \
    --output "$GRAPH.onnx" --output "${GRAPH}_uint8.onnx" --output "$GRAPH.onnx.data" \
    -- "$PY" "$ROOT/export.py" "$CKPT" video --workdir "$WORKDIR"

say "3 ONNX in the vision tower's place"
step fidelity --checkpoint "$CKPT" --input "$WORKDIR/pixels.npy" --input "$WORKDIR/vit_out.npy" \
    --input "$GRAPH.onnx" --input "${GRAPH}_uint8.onnx" --input "$GRAPH.onnx.data" --output "$WORKDIR/fidelity.json" \
    -- "$PY" "$ROOT/test_onnx_video_by_sec.py" "$CKPT" ${TEXT[@]+"${TEXT[@]}"} --workdir "$WORKDIR"

say "4 calibration set"
step calibration "${inputs[@]}" --input "$WORKDIR/capture.json" \
    --output "$WORKDIR/calib/hidden_states.tar" --output "$WORKDIR/calib/manifest.json" \
    -- "$PY" "$ROOT/get_calib.py" --inputs "${VIDEOS[@]}" --num-samples "${NUM_SAMPLES:-32}" --workdir "$WORKDIR"

CONFIG=$ROOT/config_video.json
PREFLIGHT=("$PY" "$ROOT/preflight.py" "$CKPT" --config "$CONFIG" --workdir "$WORKDIR" "${LLM[@]}")
BUILD=("$PY" -m qwen_vl_axera.compiler build "$GRAPH.onnx" --config "$CONFIG" "${NPU[@]}")
LLM_BUILD=("$PY" -m qwen_vl_axera.compiler llm_build "$CKPT" "$OUT" "${LLM[@]}"
    --parallel "${PARALLEL:-32}" --chip "${CHIP:-AX650}")
AXMODEL=${NAME}_vision.axmodel

say "is everything in place for the compiler?"
# Without the compiler the table is information; with it, a failed check stops here.
if [ "$NPU_BUILD" = 1 ]; then run "${PREFLIGHT[@]}"; else run "${PREFLIGHT[@]}" || true; fi

if [ "$NPU_BUILD" = 1 ]; then
    say "vision graph -> NPU"
    step npu-vision --input "$GRAPH.onnx" --input "$GRAPH.onnx.data" --input "$CONFIG" --env PULSAR2 \
        --input "$WORKDIR/calib/hidden_states.tar" --output "$OUT/$AXMODEL" \
        -- "${BUILD[@]}" --deliver "$OUT/$AXMODEL"
    say "compiled model against ONNX"
    step npu-fidelity --input "$OUT/$AXMODEL" --input "$WORKDIR/pixels.npy" --input "${GRAPH}_uint8.onnx" \
        --env PULSAR2 --output "$WORKDIR/axmodel_fidelity.json" \
        -- "$PY" -m qwen_vl_axera.fidelity.axmodel "$OUT/$AXMODEL" "${GRAPH}_uint8.onnx" --workdir "$WORKDIR"
    say "language model -> NPU"
    step npu-language --checkpoint "$CKPT" --env PULSAR2 --output "$OUT/qwen2_5_vl_post.axmodel" -- "${LLM_BUILD[@]}"
fi

say "5 token embeddings"
step embedding --checkpoint "$CKPT" --output "$OUT/model.embed_tokens.weight.bfloat16.bin" \
    -- "$PY" "$ROOT/extract_embedding.py" "$CKPT" "$OUT"

say "6 the directory for the board"
run "$PY" "$ROOT/package_model.py" "$CKPT" "$OUT" --workdir "$WORKDIR" ${COMPLETE[@]+"${COMPLETE[@]}"}

report() {
    say "report"
    run "$PY" "$ROOT/make_report.py" "$CKPT" --workdir "$WORKDIR"
}
answers() { # what the model said to transformers' features and to the graph's, once more at the end
    [ "$DRY_RUN" = 0 ] && [ ${#TEXT[@]} -gt 0 ] || return 0
    say "what the model says"
    "$PY" -c 'import json, sys
from qwen_vl_axera.fidelity.metrics import text_table
print(text_table(json.load(open(sys.argv[1], encoding="utf-8"))["text"]))' "$WORKDIR/fidelity.json"
}

if [ "$NPU_BUILD" = 0 ]; then
    say "NPU build"
    LEFT=$(
        printf '#!/usr/bin/env bash\n# What is left to do where Pulsar2 is; the paths are those of this run.\nset -euo pipefail\n'
        printf 'cd -- %q\n' "$PWD"
        printf '(%s)\n' "$("$HOST_PY" "${BUILD[@]:1}" --print)"
        printf 'mv -f -- %q %q\n' "$WORKDIR/build-output/$AXMODEL" "$OUT/$AXMODEL"
        "$HOST_PY" "${LLM_BUILD[@]:1}" --print
        printf '%q ' "$PY" "$ROOT/package_model.py" "$CKPT" "$OUT" --workdir "$WORKDIR" --require-complete
    )
    printf '%s\n' "$LEFT"
    if [ "$DRY_RUN" = 1 ]; then
        report
        printf '\ndry run: nothing was done\n'
    else
        printf '%s\n' "$LEFT" > "$COMMANDS.tmp"
        mv -f -- "$COMMANDS.tmp" "$COMMANDS"
        report
        answers
        printf '\ndone: the host steps; the NPU build is left (%s): run %s\n' "$WHY" "$COMMANDS"
    fi
elif [ "$DRY_RUN" = 1 ]; then
    report
    printf '\ndry run: nothing was done\n'
else
    report
    answers
    printf '\ndone: everything; upload %s\n' "$OUT"
fi
