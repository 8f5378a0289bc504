package main

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// tunnel is a pod's network on its way to the VM.
type tunnel struct {
	VNI       int    `json:"vni"`
	Port      int    `json:"port"`
	Remote    string `json:"remote"`
	Netns     string `json:"netns"`
	Interface string `json:"interface"`
}

const (
	podDevice   = "vxlan1"
	transitName = "ppvxlan%d"
	transits    = 5
)

// setup keeps one tunnel at a time in the making, for the whole process.
var setup sync.Mutex

func within(path string, work func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer handle.Close()
	return work(handle)
}

// inspect reads what a create would need: links, addresses, routes, neighbours.
func inspect(path string) error {
	return within(path, func(h *netlink.Handle) error {
		routes, err := h.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, r := range routes {
			link, err := h.LinkByIndex(r.LinkIndex)
			if err != nil {
				return err
			}
			if _, err := h.AddrList(link, netlink.FAMILY_V4); err != nil {
				return err
			}
			if _, err := h.NeighList(r.LinkIndex, netlink.FAMILY_V4); err != nil {
				return err
			}
		}
		return nil
	})
}

// attach: rules, device, move, redirect both ways.
func (t *tunnel) attach() error {
	setup.Lock()
	defer setup.Unlock()
	if err := t.addRules(); err != nil {
		return err
	}
	ns, err := netns.GetFromPath(t.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	device, err := t.addDevice()
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(device, int(ns)); err != nil {
		return err
	}
	return within(t.Netns, func(h *netlink.Handle) error { return t.wire(h, device.Attrs().Name) })
}

func (t *tunnel) addDevice() (netlink.Link, error) {
	for n := range transits {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = fmt.Sprintf(transitName, n+1)
		device := &netlink.Vxlan{
			LinkAttrs: attributes, VxlanId: t.VNI, Group: net.ParseIP(t.Remote), Port: t.Port,
		}
		err := netlink.LinkAdd(device)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return netlink.LinkByName(attributes.Name)
	}
	return nil, errors.New("all transit names are taken, or the VXLAN id is")
}

func (t *tunnel) wire(h *netlink.Handle, name string) error {
	device, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.LinkSetName(device, podDevice); err != nil {
		return err
	}
	if err := h.LinkSetUp(device); err != nil {
		return err
	}
	pod, err := h.LinkByName(t.Interface)
	if err != nil {
		return err
	}
	if err := redirect(h, pod, device); err != nil {
		return err
	}
	return redirect(h, device, pod)
}

func ingress(link netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_INGRESS,
	}}
}

func redirect(h *netlink.Handle, from, to netlink.Link) error {
	if err := h.QdiscAdd(ingress(from)); err != nil {
		return err
	}
	return h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from.Attrs().Index,
			Parent:    netlink.MakeHandle(0xffff, 0),
			Priority:  1,
			Protocol:  unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	})
}

// detach: filters, queues, device, rules.
func (t *tunnel) detach() error {
	setup.Lock()
	defer setup.Unlock()
	err := within(t.Netns, func(h *netlink.Handle) error {
		device, err := h.LinkByName(podDevice)
		if err != nil {
			return err
		}
		pod, err := h.LinkByName(t.Interface)
		if err != nil {
			return err
		}
		for _, link := range []netlink.Link{pod, device} {
			if err := unwire(h, link); err != nil {
				return err
			}
		}
		return h.LinkDel(device)
	})
	if err != nil {
		return err
	}
	return t.deleteRules()
}

func unwire(h *netlink.Handle, link netlink.Link) error {
	filters, err := h.FilterList(link, netlink.MakeHandle(0xffff, 0))
	if err != nil {
		return err
	}
	for _, filter := range filters {
		// The list also names the hash tables, which go with their filter.
		if u, ok := filter.(*netlink.U32); ok && len(u.Actions) == 0 {
			continue
		}
		if err := h.FilterDel(filter); err != nil {
			return err
		}
	}
	return h.QdiscDel(ingress(link))
}

// fill brings the machine into the state of many pods without timing it: the devices by netlink,
// all of them in the namespace park, and their rules by one iptables-restore.
func fill(tunnels []tunnel, park string) error {
	ns, err := netns.GetFromPath(park)
	if err != nil {
		return err
	}
	defer ns.Close()
	for _, t := range tunnels {
		device, err := t.addDevice()
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(device, fmt.Sprintf("fill%d", t.VNI)); err != nil {
			return err
		}
		if err := netlink.LinkSetNsFd(device, int(ns)); err != nil {
			return err
		}
	}
	return restoreRules(tunnels)
}
