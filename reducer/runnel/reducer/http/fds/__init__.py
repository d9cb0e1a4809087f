"""The interface of GA4GH's Task Execution Service, with what Federated Data Sharing adds to it."""
