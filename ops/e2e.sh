#!/usr/bin/env bash
# Builds the image, runs docker-compose.yml for real, sees metrics of every scenario in Prometheus and a score from serving, and
# takes everything down again. Nonzero when any of it fails.
#
#   ops/e2e.sh [--keep-image]
#
# CONTAINERS_SETUP   folder with setup.sh and env.sh that make podman and the public images usable (default ../shared/containers;
#                    without it docker, or podman-compose, is used as it is)
# PIP_ARGS           for pip inside the image, such as --extra-index-url with the CPU wheels of torch
# E2E_WORKERS        streams workers (default 2); E2E_SECONDS of traffic (default 60); E2E_PATIENCE_S for each wait (default 300)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

project=thousandfold-e2e
workers=${E2E_WORKERS:-2} traffic_s=${E2E_SECONDS:-60} patience_s=${E2E_PATIENCE_S:-300}
setup=${CONTAINERS_SETUP:-../shared/containers}
export THOUSANDFOLD_IMAGE=${THOUSANDFOLD_IMAGE:-thousandfold:e2e}
keep_image=false
case ${1:-} in
  --keep-image) keep_image=true ;;
  '') ;;
  *) echo "usage: ops/e2e.sh [--keep-image]" >&2; exit 2 ;;
esac

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

choose_engine() {
  if [ -x "$setup/setup.sh" ]; then
    say "containers: $setup/setup.sh"
    "$setup/setup.sh" >/dev/null
    # shellcheck source=/dev/null
    . "$setup/env.sh"
    # What it builds under the names of the public images has these tags unless told otherwise.
    export KAFKA_TAG=${KAFKA_TAG:-latest} VALKEY_TAG=${VALKEY_TAG:-latest} PROMETHEUS_TAG=${PROMETHEUS_TAG:-latest}
    engine=podman compose=(podman-compose)
  elif docker compose version >/dev/null 2>&1; then
    engine=docker compose=(docker compose)
  elif command -v podman-compose >/dev/null; then
    engine=podman compose=(podman-compose)
  else
    fail "neither docker compose nor podman-compose is installed"
  fi
  compose+=(-p "$project" -f docker-compose.yml)
  say "engine: $engine"
}

# Ports of this run only, so that it disturbs nothing else on this machine.
choose_ports() {
  local ports
  ports=$(python3 -c 'import socket
held = [socket.socket() for _ in range(4)]
for s in held: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))')
  read -r KAFKA_PORT SERVING_PORT PROMETHEUS_PORT GRAFANA_PORT <<<"$ports"
  export KAFKA_PORT SERVING_PORT PROMETHEUS_PORT GRAFANA_PORT
  prometheus=http://127.0.0.1:$PROMETHEUS_PORT serving=http://127.0.0.1:$SERVING_PORT
}

build_image() {
  local arguments=(-f ops/Dockerfile -t "$THOUSANDFOLD_IMAGE" --build-arg "PIP_ARGS=${PIP_ARGS:-}"
    --build-arg "COMMIT=$(git rev-parse --short HEAD 2>/dev/null || true)")
  if [ "$engine" = podman ]; then
    # Wheels that pip finds in a folder of this machine must be found inside the build too.
    local wheels=${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}
    [ -d "$wheels" ] && arguments+=(--volume "$wheels:$wheels:ro")
    arguments+=(--network=host --ulimit nofile=4096:8192 --ulimit nproc=4096:8192)
  fi
  "$engine" build "${arguments[@]}" . >"$logs/build.log" 2>&1 || { tail -30 "$logs/build.log" >&2; fail "the image does not build"; }
  say "image: $("$engine" image inspect --format '{{.Size}}' "$THOUSANDFOLD_IMAGE" | awk '{printf "%.0f MB", $1 / 1e6}')"
}

check_rules() {
  "$engine" run --rm --network none --entrypoint promtool -v "$PWD/ops:/ops:ro" -w /ops "prom/prometheus:${PROMETHEUS_TAG:-v3.5.0}" \
    check rules rules.yml
  "$engine" run --rm --network none --entrypoint promtool -v "$PWD/ops:/ops:ro" -w /ops "prom/prometheus:${PROMETHEUS_TAG:-v3.5.0}" \
    test rules rules_test.yml
}

choose_services() {
  services=(kafka valkey topics streams learner serving prometheus)
  local grafana="grafana/grafana:${GRAFANA_TAG:-12.2.0}"
  if "$engine" image inspect "$grafana" >/dev/null 2>&1 || timeout 120 "$engine" pull -q "$grafana" >/dev/null 2>&1; then
    services+=(grafana)
  else
    say "left out: grafana ($grafana cannot be had here; its board is checked against its schema by tests/ops)"
  fi
}

containers() { "$engine" ps -a --filter "label=com.docker.compose.project=$project" "$@"; }

is_healthy() {
  if [ "$engine" = podman ]; then
    podman healthcheck run "$1" >/dev/null 2>&1 # some installations of podman run no health checks by themselves
  else
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]
  fi
}

wait_until_healthy() {
  local until=$((SECONDS + patience_s)) name service waiting
  while true; do
    waiting=()
    while read -r name service; do
      [ "$service" = topics ] && continue
      is_healthy "$name" || waiting+=("$name")
    done < <(containers --format '{{.Names}} {{index .Labels "com.docker.compose.service"}}')
    [ ${#waiting[@]} = 0 ] && return
    ((SECONDS < until)) || fail "not healthy after $patience_s s: ${waiting[*]}"
    sleep 3
  done
}

# until_seen WHAT COMMAND...: repeat a look from outside until it succeeds.
until_seen() {
  local what=$1 until=$((SECONDS + patience_s))
  shift
  until python3 ops/observe.py "$@" >"$logs/seen" 2>"$logs/unseen"; do
    ((SECONDS < until)) || fail "$what: $(cat "$logs/unseen")"
    sleep 2
  done
  say "$what"
  sed 's/^/          /' "$logs/seen"
}

produce() {
  "$engine" run --rm --name "$project-produce" --network "${project}_default" --read-only --tmpfs /tmp:mode=1777 --cap-drop ALL \
    --security-opt no-new-privileges -v "$PWD/ops/thousandfold.toml:/etc/thousandfold/thousandfold.toml:ro" "$THOUSANDFOLD_IMAGE" \
    thousandfold produce simulate --config /etc/thousandfold/thousandfold.toml --rate 500 --for "${traffic_s}s" \
    --delay-median 0.3 --delay-p90 1 >"$logs/produce.log" 2>&1
}

take_down() {
  "$engine" rm -f "$project-produce" || true
  if [ "$engine" = podman ]; then
    # podman-compose does not remember how many there are of a scaled service, and would leave the others. Podman removes what
    # depends on a container with it, and then stumbles over what it has removed already.
    local left
    for _ in 1 2 3 4 5; do
      left=$(containers -q)
      [ -n "$left" ] || break
      # shellcheck disable=SC2086
      podman rm -f --depend -t 15 $left || true
    done
  fi
  "${compose[@]}" down -v
}

clean_up() {
  local code=$? name
  trap - EXIT
  if ((code)) && [ -n "${engine:-}" ]; then
    for name in $(containers --format '{{.Names}}'); do
      echo "--- $name: $("$engine" inspect --format '{{.State.Status}}, exit code {{.State.ExitCode}}' "$name")" >&2
      "$engine" logs --tail 15 "$name" >&2 2>&1 || true
    done
  fi
  if [ -n "${engine:-}" ]; then
    take_down >"$logs/down.log" 2>&1 || { cat "$logs/down.log" >&2; code=1; }
    [ -z "$(containers -q)" ] || { say "containers were left behind" >&2; code=1; }
    $keep_image || "$engine" rmi -f "$THOUSANDFOLD_IMAGE" >/dev/null 2>&1 || true
    say "taken down"
  fi
  rm -rf "$logs"
  ((code)) && say "FAILED" || say "passed"
  exit "$code"
}

logs=$(mktemp -d)
trap clean_up EXIT
trap 'exit 130' INT TERM

choose_engine
choose_ports
say "building $THOUSANDFOLD_IMAGE"
build_image
say "rules: promtool"
check_rules
choose_services
say "starting ${services[*]}, $workers streams workers"
take_down >/dev/null 2>&1 || true
"${compose[@]}" up -d --scale "streams=$workers" "${services[@]}" >"$logs/up.log" 2>&1 || { cat "$logs/up.log" >&2; fail "compose up"; }
wait_until_healthy
say "healthy: $(containers --format '{{.Names}}' | sort | tr '\n' ' ')"
until_seen "Prometheus reaches every process" targets "$prometheus" "$workers"
say "producing for $traffic_s s inside the network"
produce || { cat "$logs/produce.log" >&2; fail "produce"; }
tail -1 "$logs/produce.log" | sed 's/^/          /'
until_seen "metrics of every scenario are in Prometheus" metrics "$prometheus" 3
until_seen "serving answers" score "$serving"
