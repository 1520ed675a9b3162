package jetstream

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
)

// TestCluster runs the contract on three replicas, where the leaders are asked.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("a cluster of three servers takes its time")
	}
	var routes []string
	var ports []int
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		ports = append(ports, port)
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port))
	}
	var servers []*external
	for i, port := range ports {
		servers = append(servers, newExternal(t, func(o *server.Options) {
			o.ServerName = fmt.Sprintf("n%d", i)
			o.Cluster.Name, o.Cluster.Host, o.Cluster.Port = "c", "127.0.0.1", port
			o.Routes = server.RoutesFromStr(routes[0] + "," + routes[1] + "," + routes[2])
		}))
	}
	eventually(t, "a leader", func() bool {
		for _, s := range servers {
			if s.srv.JetStreamIsLeader() && len(s.srv.JetStreamClusterPeers()) == 3 {
				return true
			}
		}
		return false
	})
	n := 0
	bustest.Run(t, bustest.Config{
		Open: func(t *testing.T) bus.Bus {
			o := servers[n%3].options()
			n++
			o.Prefix, o.Replicas = fmt.Sprintf("p%d", n), 3
			b := mustOpen(t, o)
			t.Cleanup(func() {
				if b.isClosed() {
					return
				}
				for _, lg := range b.logs {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					_ = b.js.DeleteStream(ctx, lg.name)
					cancel()
				}
			})
			return b
		},
		Redeliver: time.Second,
	})
}
