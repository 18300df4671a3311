"""Sources of rows beside the devices' own, one module each: ports, meters, engines, kernel log, cloud.

Every one is optional and costs nothing where its hardware or setting is absent.
"""
