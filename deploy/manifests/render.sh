#!/usr/bin/env bash
# Makes the files here that say so out of the charts; needs helm. `render.sh DIR` makes them there instead.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.}
command -v helm >/dev/null || { echo "render.sh: helm is not installed: https://helm.sh/docs/intro/install" >&2; exit 1; }

# render FILE CHART RELEASE NAMESPACE VALUES TEMPLATE...: what the templates give
render() {
    local file=$1 chart=$2 release=$3 namespace=$4 values=$5 template text
    shift 5
    local only=()
    for template in "$@"; do only+=(--show-only "templates/$template"); done
    # Before the file is touched: what fails leaves it.
    text=$(helm template "$release" "../helm/$chart" --namespace "$namespace" --values "values/$values" "${only[@]}" 2>/dev/null) ||
        helm template "$release" "../helm/$chart" --namespace "$namespace" --values "values/$values" "${only[@]}" >/dev/null
    mkdir -p "$out/$(dirname "$file")"
    {
        echo "# Made by deploy/manifests/render.sh from the chart $chart; change it there."
        # Here it is no Helm that manages them.
        sed -e '/^# Source: /d' -e '/helm.sh\/chart:/d' -e '/app.kubernetes.io\/managed-by: Helm/d' <<<"$text"
    } >"$out/$file"
}

for part in members scaler registrar networkpolicy; do
    render "base/$part.yaml" cairn cairn cairn-system pool.yaml "$part.yaml"
done
render components/keda/scaledobject.yaml cairn cairn cairn-system pool.yaml scaling.yaml
render components/monitoring/monitoring.yaml cairn cairn cairn-system monitoring.yaml monitoring.yaml
render swap/all-waypoints/overlay.yaml cairn cairn istio-system swap-all.yaml swap.yaml
render swap/own-class/overlay.yaml cairn cairn istio-system swap-own-class.yaml swap.yaml
render swap/one-gateway-on-eci/overlay.yaml cairn cairn istio-system swap-one-gateway.yaml swap.yaml
render join/join.yaml cairn-join cairn-join waypoint-pool join.yaml pool.yaml registrar.yaml
