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
# It makes the environment and runs, one after the other (qwen_vl_axera/chain/steps.py has their files):
#
#   python run_video_by_sec.py CKPT --video VIDEO          transformers' vision tower, step by step
#   python export.py CKPT video                            PyTorch -> ONNX
#   python test_onnx_video_by_sec.py CKPT                  ONNX in the vision tower's place: 1 stops here
#   python get_calib.py --inputs VIDEO...                  calibration set
#   python preflight.py CKPT                               is everything in place for the compiler?
#   python probe_build.py CKPT                             two blocks of the tower -> NPU: which form compiles?
#   pulsar2 llm_build --input_path CKPT --output_path OUT  language model -> NPU
#   pulsar2 build --input NAME_vision.onnx                 vision graph -> NPU, then compared by `pulsar2 run`
#   python extract_embedding.py CKPT OUT                   token embeddings
#   python package_model.py CKPT OUT                       the directory for the board
#   python make_report.py CKPT                             report.html
#
# PULSAR2 names the NPU compiler: a command, or docker:IMAGE. Without it the host steps all run, and the build
# commands are printed and written to WORKDIR/pulsar2_commands.sh.
#
# Variables (defaults):
#   WORKDIR (the current directory)   OUT (CKPT-AX650)   VENV (.venv beside this script)   PYTHON (python3)
#   SIZE ("H W"; from the video)   NUM_FRAMES (8)   FPS   NUM_SAMPLES (32, for calibration)   GENERATE (0; 1
#   compares text, too)   CHIP (AX650)   PULSAR2   DOCKER_FLAGS (words for `docker run`: a licence file, --gpus)
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
export PYTHONPATH=$ROOT # and nothing else: whatever lies in the current directory is no module of ours

fail() { printf 'error: %s\n' "${*//[[:cntrl:]]/?}" >&2; exit 2; }
path() { case $1 in -*) printf './%s' "$1" ;; *) printf '%s' "$1" ;; esac; } # never mistaken for a flag

DRY_RUN=0
for word in "$@"; do
    case $word in
        --dry-run) DRY_RUN=1 ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --) break ;;
    esac
done
run() { # in a dry run, prints the command
    if [ "$DRY_RUN" = 0 ]; then "$@"; return; fi
    { printf '%q ' "$@" && printf '\n'; } 2> /dev/null || fail "standard output cannot be written"
}

VENV=$(path "${VENV:-$ROOT/.venv}")
[ ! -e "$VENV" ] || [ -d "$VENV" ] || fail "VENV=$VENV: expected a directory, or nothing yet"
PY=$VENV/bin/python
if ! "$PY" -P "$ROOT/qwen_vl_axera/chain/requirements.py" "$ROOT/requirements.txt" 2> /dev/null; then
    PYTHON=$(path "${PYTHON:-python3}")
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "PYTHON=$PYTHON: expected Python 3.11 or later"
    "$PYTHON" -P -m qwen_vl_axera.chain --check "$@" # a mistake costs no installation
    [ -x "$PY" ] || run "$PYTHON" -P -m venv "$VENV"
    run "$PY" -P -m pip install --quiet -r "$ROOT/requirements.txt"
    [ -x "$PY" ] || PY=$PYTHON # a dry run before the environment exists
fi
exec "$PY" -P -m qwen_vl_axera.chain "$@"
