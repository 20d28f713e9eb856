package node

import (
	"cmp"
	"slices"

	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// serviceName names a service.
type serviceName struct{ namespace, name string }

// setHostPorts has the brain serve a pod's host ports: each is a service of its own with the pod as the one backend.
func (l *serviceLoop) setHostPorts(row *table.Endpoint, deleted bool) {
	var kept []serviceName
	for _, port := range row.HostPorts {
		if deleted {
			break
		}
		frontend, backends := service.HostPort(row.Namespace, cmp.Or(row.Pod, row.Sandbox), l.self, row.Addrs, port)
		l.brain.SetService(frontend)
		l.brain.SetBackends(backends)
		kept = append(kept, serviceName{frontend.Namespace, frontend.Name})
	}
	for _, old := range l.hostPorts[row.ID] {
		if !slices.Contains(kept, old) {
			l.brain.DeleteService(old.namespace, old.name)
			l.brain.DeleteBackends(old.namespace, old.name, old.name)
		}
	}
	if l.hostPorts[row.ID] = kept; len(kept) == 0 {
		delete(l.hostPorts, row.ID)
	}
}
