"""What a package's ``ServerFunctions`` derive from."""


class ServerFunctionsBase:
    """Functions that a package brings for the servers; those that it does not define keep the servers' own ways."""

    def client_selection(self, client_ids):
        """Return those of ``client_ids`` that the round asks."""
        raise NotImplementedError

    def client_settings(self, global_model):
        """Return the client settings of the round, as JSON values by name."""
        raise NotImplementedError

    def aggregate(self, previous_global, client_updates):
        """Return the new model from ``{client_id: (parameters, metadata)}``."""
        raise NotImplementedError

    def incremental_aggregate(self, client_id, model, client_metadata, previous_global):
        """Take one update into account."""
        raise NotImplementedError

    def get_incremental_aggregate_model(self):
        """Return the model of all updates that were taken into account."""
        raise NotImplementedError
