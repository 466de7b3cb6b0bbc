// Command dra is a DRA driver for tests: it publishes devices that do not exist, and shows each container the devices of its claims
// in the environment variable FAKE_DEVICES (comma-separated names), injected by CDI as a real driver injects device nodes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	resource "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

// A driver keeps no state but the CDI files: one for each prepared claim.
type driver struct {
	name   string
	folder string
}

// cdiSpec is the part of a CDI file (cncf.io/container-device-interface, 0.6.0) that is used here.
type cdiSpec struct {
	Version string      `json:"cdiVersion"`
	Kind    string      `json:"kind"`
	Devices []cdiDevice `json:"devices"`
}

type cdiDevice struct {
	Name  string   `json:"name"`
	Edits cdiEdits `json:"containerEdits"`
}

type cdiEdits struct {
	Env []string `json:"env"`
}

func (d driver) kind() string { return d.name + "/claim" }

func (d driver) file(claim types.UID) string {
	return filepath.Join(d.folder, d.name+"-"+string(claim)+".json")
}

// own returns the devices of a claim that this driver serves.
func (d driver) own(claim *resource.ResourceClaim) []resource.DeviceRequestAllocationResult {
	var own []resource.DeviceRequestAllocationResult
	if claim.Status.Allocation == nil {
		return own
	}
	for _, result := range claim.Status.Allocation.Devices.Results {
		if result.Driver == d.name {
			own = append(own, result)
		}
	}
	return own
}

// writeSpec replaces a claim's CDI file; a reader sees the old or the new one.
func (d driver) writeSpec(claim types.UID, names []string) error {
	spec := cdiSpec{Version: "0.6.0", Kind: d.kind(), Devices: []cdiDevice{{
		Name:  string(claim),
		Edits: cdiEdits{Env: []string{"FAKE_DEVICES=" + strings.Join(names, ",")}},
	}}}
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	temporary := d.file(claim) + ".new"
	if err := os.WriteFile(temporary, text, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, d.file(claim))
}

func (d driver) prepare(claim *resource.ResourceClaim) kubeletplugin.PrepareResult {
	own := d.own(claim)
	names := make([]string, 0, len(own))
	for _, each := range own {
		names = append(names, each.Device)
	}
	if err := d.writeSpec(claim.UID, names); err != nil {
		return kubeletplugin.PrepareResult{Err: fmt.Errorf("claim %s/%s: %w", claim.Namespace, claim.Name, err)}
	}
	var devices []kubeletplugin.Device
	for _, each := range own {
		devices = append(devices, kubeletplugin.Device{
			Requests:     []string{each.Request},
			PoolName:     each.Pool,
			DeviceName:   each.Device,
			CDIDeviceIDs: []string{d.kind() + "=" + string(claim.UID)},
		})
	}
	return kubeletplugin.PrepareResult{Devices: devices}
}

func (d driver) PrepareResourceClaims(_ context.Context, claims []*resource.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	results := map[types.UID]kubeletplugin.PrepareResult{}
	for _, claim := range claims {
		results[claim.UID] = d.prepare(claim)
	}
	return results, nil
}

func (d driver) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	results := map[types.UID]error{}
	for _, claim := range claims {
		err := os.Remove(d.file(claim.UID))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		results[claim.UID] = err
	}
	return results, nil
}

func (d driver) HandleError(_ context.Context, err error, message string) {
	log.Printf("%s: %v", message, err)
}

func devices(count int) []resource.Device {
	var all []resource.Device
	for index := range count {
		all = append(all, resource.Device{Name: fmt.Sprintf("fake-%d", index)})
	}
	return all
}

func run(ctx context.Context) error {
	name := flag.String("driver", "fake.rljob.dev", "the driver's name")
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	node := flag.String("node", "", "the node whose devices these are")
	kubelet := flag.String("kubelet", "/var/lib/kubelet", "the kubelet's folder")
	cdi := flag.String("cdi", "/var/run/cdi", "where the container runtime looks for CDI files")
	count := flag.Int("devices", 8, "how many devices to publish")
	flag.Parse()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	data := filepath.Join(*kubelet, "plugins", *name)
	for _, folder := range []string{*cdi, data} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	helper, err := kubeletplugin.Start(ctx, driver{*name, *cdi},
		kubeletplugin.DriverName(*name), kubeletplugin.NodeName(*node), kubeletplugin.KubeClient(client),
		kubeletplugin.RegistrarDirectoryPath(filepath.Join(*kubelet, "plugins_registry")),
		kubeletplugin.PluginDataDirectoryPath(data))
	if err != nil {
		return err
	}
	defer helper.Stop()
	slice := resourceslice.Slice{Devices: devices(*count)}
	pools := map[string]resourceslice.Pool{*node: {Slices: []resourceslice.Slice{slice}}}
	if err := helper.PublishResources(ctx, resourceslice.DriverResources{Pools: pools}); err != nil {
		return err
	}
	log.Printf("%d devices of %s on node %s", *count, *name, *node)
	<-ctx.Done()
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
