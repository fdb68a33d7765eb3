// The lab: a real control plane and its clients in one program. The first argument says which part of it runs.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	helm "helm.sh/helm/v4/pkg/cmd"
	istioctl "istio.io/istio/istioctl/cmd"
	istiod "istio.io/istio/pilot/cmd/pilot-discovery/app"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if len(os.Args) < 2 {
		fail("usage: lab etcd|kube-apiserver|istiod|istioctl|kubectl|helm ARGUMENTS")
	}
	role := os.Args[1]
	os.Args = os.Args[1:] // each part reads its own command line
	switch role {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "istiod":
		run(istiod.NewRootCommand().Execute())
	case "istioctl":
		run(istioctl.GetRootCmd(os.Args[1:]).Execute())
	case "kubectl":
		os.Exit(cli.Run(kubectl.NewDefaultKubectlCommand()))
	case "helm":
		command, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
		run(err)
		run(command.Execute())
	default:
		fail("no part is called " + role + ": etcd, kube-apiserver, istiod, istioctl, kubectl or helm")
	}
}

func run(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(1)
}
