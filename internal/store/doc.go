// Package store is the one client of the cluster's store, an etcd whose keys DESIGN section 3 lists.
package store
